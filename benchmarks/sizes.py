"""The two sizes that networks are measured at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from nfm.random import generator_for
from nfm.student.velocity import SiT
from nfm.teacher.tarflow import TarFlow

CLASSES = 10
HEAD = 64
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Size:
    """Images, networks and a batch; a student has as many layers as the teacher has in all its blocks."""

    name: str
    shape: tuple[int, int, int]
    patch: int
    width: int
    blocks: int
    layers: int
    batch: int

    def teacher(self) -> TarFlow:
        """Makes a teacher that is not the identity."""
        patch = (self.patch, self.patch)
        return stirred(lambda: TarFlow(self.shape, patch, self.blocks, self.layers, self.width, HEAD, CLASSES))

    def student(self) -> SiT:
        """Makes a student whose velocity is not zero."""
        patch = (self.patch, self.patch)
        depth = self.blocks * self.layers
        return stirred(lambda: SiT(self.shape, patch, depth, self.width, HEAD, CLASSES))

    def images(self, seed: int, count: int | None = None) -> Tensor:
        """Draws a batch from N(0, I)."""
        count = self.batch if count is None else count
        return torch.randn(count, *self.shape, generator=generator_for(seed)).to(device())

    def labels(self, count: int | None = None) -> Tensor:
        """Returns a batch's classes."""
        return (torch.arange(self.batch if count is None else count) % CLASSES).to(device())


SIZES = (Size("a", (1, 8, 8), 2, 64, 4, 2, 256), Size("b", (3, 32, 32), 4, 256, 4, 4, 64))


def device() -> torch.device:
    """Returns where networks are measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stirred(make: Callable[[], Network]) -> Network:
    """Makes a network whose weights are off the zeros that make an untrained one trivial, the same every time."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    return model.to(device())
