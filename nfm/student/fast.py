"""A velocity network that samples faster: in bfloat16, compiled, or both."""

from typing import Protocol

import torch
from torch import Tensor, nn


class Network(Protocol):
    """A velocity network's forward pass; see `nfm.student.velocity.SiT.forward`."""

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None, dropped: Tensor | None, /) -> Tensor: ...


def fast(model: nn.Module, *, bf16: bool, compile: bool, backend: str = "inductor") -> Network:
    """Returns the forward pass of a velocity network for sampling; points on the path keep their dtype.

    Arguments:
        model: The network.
        bf16: Whether matrix products are in bfloat16, by autocast.
        compile: Whether torch.compile compiles it, for each size of a batch anew. On a GPU its kernels are launched
            together, as a CUDA graph.
        backend: Of torch.compile.
    """
    # Only inductor knows modes.
    mode = "reduce-overhead" if backend == "inductor" else None
    network = torch.compile(model, backend=backend, mode=mode, dynamic=False) if compile else model

    def forward(x: Tensor, t: Tensor, label: Tensor | None, dropped: Tensor | None, /) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            velocity = network(x, t, label, dropped)
        # A copy, since the next replay of a CUDA graph writes to the same place.
        return velocity.to(x.dtype, copy=compile)

    return forward
