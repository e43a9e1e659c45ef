"""Other implementations, run from checkouts that the user points to, at the same sizes and with their own layers.

Nothing of them is kept here. They are called by the names that their own training scripts use, and need what they
import: timm for sit, POT for torchcfm.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sizes import CLASSES, HEAD, Size, device, stirred
from nfm.errors import InputError

MODULES = {"ml-tarflow": "transformer_flow", "sit": "models", "torchcfm": "torchcfm.optimal_transport"}
Peers = dict[str, ModuleType]


def load(given: list[str]) -> Peers:
    """Imports the peers of NAME=PATH.

    Raises:
        InputError: A name is unknown, or the path holds no such module, or that cannot be imported.
    """
    found: Peers = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in MODULES or not path:
            raise InputError(f"--peer is {text!r}, expected NAME=PATH with a name of {', '.join(MODULES)}")
        with importable(Path(path)):
            try:
                found[name] = importlib.import_module(MODULES[name])
            except ImportError as error:
                raise InputError(f"--peer {text}: {error}; name a checkout, and install what it imports") from error
    return found


@contextmanager
def importable(path: Path) -> Iterator[None]:
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))


def tarflow(peer: ModuleType, size: Size) -> nn.Module:
    """Makes ml-tarflow's model of a size."""
    channels, side, _ = size.shape
    return stirred(
        lambda: peer.Model(channels, side, size.patch, size.width, size.blocks, size.layers, num_classes=CLASSES)
    )


def tarflow_loss(model: Any, x: Tensor, label: Tensor) -> Tensor:
    z, _, log_det = model(x, label)
    return model.get_loss(z, log_det)


def sit(peer: ModuleType, size: Size) -> nn.Module:
    """Makes SiT of a size."""
    channels, side, _ = size.shape
    return stirred(
        lambda: peer.SiT(
            input_size=side,
            patch_size=size.patch,
            in_channels=channels,
            hidden_size=size.width,
            depth=size.blocks * size.layers,
            num_heads=size.width // HEAD,
            num_classes=CLASSES,
            learn_sigma=False,
        )
    )


def sit_loss(model: nn.Module, data: Tensor, noise: Tensor, label: Tensor) -> Tensor:
    t = torch.rand(len(data), device=data.device)
    s = t[:, None, None, None]
    return (model((1 - s) * data + s * noise, t, label) - (noise - data)).square().mean()


def written_out(model: nn.Module) -> nn.Module:
    """Switches a peer's attention to products and a softmax, which is its fastest way in bfloat16 on a CPU."""
    for module in model.modules():
        for name in ("fused_attn", "USE_SPDA"):  # timm's, ml-tarflow's
            if hasattr(module, name):
                setattr(module, name, False)
    return model


def training(model: nn.Module, betas: tuple[float, float], ema: bool, bf16: bool) -> Any:
    """Returns a function that updates the model by a loss given as a function, as the peers' scripts do."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=betas, weight_decay=1e-4)
    averages = [p.detach().clone() for p in model.parameters()] if ema else []

    def update(loss: Any) -> None:
        optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            for average, p in zip(averages, model.parameters(), strict=bool(averages)):
                average.mul_(0.9999).add_(p, alpha=1 - 0.9999)

    return update
