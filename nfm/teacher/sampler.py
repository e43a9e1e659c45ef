"""The teacher's samples, batch after batch: on a GPU by replaying a CUDA graph."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nfm.teacher.denoise import sample_teacher
from nfm.teacher.tarflow import TarFlow

Decode = Callable[[Tensor, Tensor | None], Tensor]


class TeacherSampler:
    """Decodes batches of noise as `sample_teacher` does, to the same bits.

    Token by token, a GPU waits longer for each of its many small kernels than it computes. So the first batch of
    a shape warms up, the second is captured as a CUDA graph, and from then on that is replayed. Chunks of several
    tokens end when they have settled, which a graph can't know; they, and other devices, decode plainly.

    Arguments:
        model: The teacher; its weights stay where they are.
        guidance: As of `sample_teacher`.
        chunk: Likewise.
        tolerance: Likewise.
    """

    def __init__(self, model: TarFlow, *, guidance: float = 0.0, chunk: int = 1, tolerance: float = 0.0) -> None:
        self._decode: Decode = partial(sample_teacher, model, guidance=guidance, chunk=chunk, tolerance=tolerance)
        self._replays = chunk == 1
        self._known: dict[tuple[torch.Size, bool], Decode] = {}

    def __call__(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Decodes noise, with shape (B, C, H, W), to images; labels have shape (B,)."""
        if not self._replays or z.device.type != "cuda":
            return self._decode(z, label)
        shape = z.shape, label is None
        if shape not in self._known:
            self._known[shape] = self._decode
            return self._decode(z, label)
        if self._known[shape] is self._decode:
            self._known[shape] = _Replay(self._decode, z, label)
        return self._known[shape](z, label)


class _Replay:
    """A CUDA graph of a decoding of tensors of some shapes."""

    def __init__(self, decode: Decode, z: Tensor, label: Tensor | None) -> None:
        self._z, self._label = z.clone(), None if label is None else label.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._images = decode(self._z, self._label)

    def __call__(self, z: Tensor, label: Tensor | None) -> Tensor:
        self._z.copy_(z)
        if self._label is not None and label is not None:
            self._label.copy_(label)
        self._graph.replay()
        return self._images.clone()
