"""What a list of samples starts from, made as it is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nfm.random import generator_for
from nfm.solve.sample import initial_noise


@dataclass(frozen=True)
class Draws:
    """Noise and labels of a list of samples; number i is a function of the seed and i alone.

    Attributes:
        count: Number of samples.
        shape: Of a sample.
        seed: Seed of all of them.
        labels: Classes that those of the samples are as frequent as, with shape (N,), or None.
        device: Where the noise and the labels go.
    """

    count: int
    shape: tuple[int, ...]
    seed: int
    labels: Tensor | None
    device: torch.device

    def noise(self, first: int, last: int) -> Tensor:
        """Returns the noise of the samples from `first` to before `last`, with shape (B, *event)."""
        return initial_noise(last - first, self.shape, self.seed, first).to(self.device)

    def label(self, first: int, last: int) -> Tensor | None:
        """Returns the classes of the samples from `first` to before `last`, with shape (B,)."""
        if self.labels is None:
            return None
        order = torch.randperm(len(self.labels), generator=generator_for(self.seed, 0, 1))
        return self.labels[order[torch.arange(first, last) % len(order)]].to(self.device)

    def first(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Returns noise and classes of the first samples."""
        last = min(count, self.count)
        return self.noise(0, last), self.label(0, last)

    def parts(self, batch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Gives noise and classes of all samples, `batch` at a time."""
        for span in self.spans(batch):
            yield self.noise(*span), self.label(*span)

    def spans(self, batch: int) -> list[tuple[int, int]]:
        """Returns first and last number, the last not included, of `batch` samples at a time."""
        return [(first, min(first + batch, self.count)) for first in range(0, self.count, batch)]

    def shown(self, most: int) -> list[int]:
        """Returns the numbers of samples to show: the first of each class, or the first few."""
        # After as many as there are labels they repeat.
        label = self.label(0, min(self.count, 0 if self.labels is None else len(self.labels)))
        if label is None:
            return list(range(min(most, self.count)))
        return [int((label == c).nonzero()[0, 0]) for c in label.unique()[:most]]
