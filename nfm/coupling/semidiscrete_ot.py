"""Optimal transport from all of N(0, I) to the training images, by one potential per image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, full_precision, normal_like
from nfm.random import generator_for

CHECKS = 1000  # noise draws per image at which a fit's marginal is measured

# Negative, so that no step, row or sample has the same stream of noise for the same seed.
_STREAM = -2


class SemidiscreteOT(Coupling):
    r"""z ~ N(0, I), paired with the training image whose cell it falls into.

    .. math:: x = x_j, \qquad j = \arg\min_j \tfrac{1}{2} \lVert z - x_j \rVert^2 - g_j

    With the right potentials g every cell has the same mass. Of a batch only its labels are used:
    its images are replaced by those of the same class that the noise chooses.

    References:
        Flow Matching with Semidiscrete Couplings (Mousavi-Hosseini et al., 2025). https://arxiv.org/abs/2509.25519

    Arguments:
        data: All training images, with shape (N, C, H, W); a copy is kept.
        label: Their labels, with shape (N,), or None.
        potentials: g, with shape (N,), fitted in the same groups as are chosen from here.
        across_classes: Choose from all images although there are labels; a pair has the label of
            the chosen image.
    """

    def __init__(
        self,
        data: Tensor,
        label: Tensor | None,
        potentials: Tensor,
        *,
        across_classes: bool = False,
    ) -> None:
        if potentials.shape != (len(data),):
            raise ValueError(f"potentials have shape {tuple(potentials.shape)}, expected ({len(data)},)")
        self._shape = data.shape[1:]
        grouped = None if across_classes else label
        parts = list(groups(grouped, len(data), data.device))
        self.order = order = torch.cat([rows for _, rows in parts])
        # Sorted by class, so that a class is a view and not a copy at every step.
        self._points = data.flatten(1)[order]
        # argmin of the cost is argmax of z.x_j - (|x_j|^2 / 2 - g_j).
        self._offset = self._points.square().sum(1) / 2 - potentials.to(data)[order]
        self._label = None if label is None else label.to(data.device)[order]
        ends = torch.tensor([len(rows) for _, rows in parts]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        self._cells = {c: range(*ends) for (c, _), *ends in zip(parts, starts, ends, strict=True)}

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        if (batch.label is None) != (self._label is None):
            here, there = ("without", "with") if batch.label is None else ("with", "without")
            raise ValueError(f"the batch comes {here} labels, the coupling was made {there} them")
        noise = normal_like(batch.data, generator)
        chosen = self.choose(noise, batch.label)
        data = self._points[chosen].unflatten(1, self._shape)
        return Pairs(data, noise, None if self._label is None else self._label[chosen])

    def choose(self, noise: Tensor, label: Tensor | None) -> Tensor:
        """Returns the place in `order` of the image that each row of noise is sent to."""
        with full_precision(noise):
            return self._choose(noise.flatten(1), label)

    def _choose(self, z: Tensor, label: Tensor | None) -> Tensor:
        if label is None or None in self._cells:
            return self._nearest(z, self._cells[None])
        chosen = torch.empty_like(label)
        for c in label.unique().tolist():
            if c not in self._cells:
                raise ValueError(f"the batch holds class {c}, of which the coupling has no image")
            rows = (label == c).nonzero()[:, 0]
            chosen[rows] = self._nearest(z[rows], self._cells[c])
        return chosen

    def _nearest(self, z: Tensor, cells: range) -> Tensor:
        points, offset = (part[cells.start : cells.stop] for part in (self._points, self._offset))
        return cells.start + (z @ points.T - offset).argmax(1)


@dataclass(frozen=True)
class Fitted:
    """Potentials and how well they do.

    Attributes:
        potentials: g, with shape (N,), of mean 0 in each class.
        marginal_error: Total variation distance, in [0, 1], between the mass of a class's cells,
            estimated on fresh noise, and the uniform distribution; the mean over all images.
        sampling_error: What marginal_error would be expected to read if every cell had the same
            mass exactly.
    """

    potentials: Tensor
    marginal_error: float
    sampling_error: float


def fit_potentials(
    data: Tensor,
    label: Tensor | None,
    *,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1.0,
    seed: int,
) -> Fitted:
    r"""Fits the potentials by averaged stochastic gradient ascent on the semidual.

    .. math:: g_j \leftarrow g_j + \lambda s^{-1/2} (1 - n\, \hat{p}_j), \qquad s = 1, 2, \dots

    Here n is the number of images of the class, and p_j the share of a batch of noise that falls
    into cell j. The mean of the second half of the iterates is returned.

    References:
        Stochastic Optimization for Large-scale Optimal Transport (Genevay et al., 2016).
        https://arxiv.org/abs/1605.08527

    Arguments:
        data: All training images, with shape (N, C, H, W).
        label: Their labels, with shape (N,); None fits over the whole set.
        steps: Gradient steps per class.
        batch: Noise draws per step.
        lr: First step size, in units of squared distance.
        seed: Seed of the noise.
    """
    potentials = torch.zeros(len(data), device=data.device, dtype=data.dtype)
    error = expected = 0.0
    for number, (_, rows) in enumerate(groups(label, len(data), data.device)):
        generator = generator_for(seed, _STREAM, number, device=data.device)
        points, n = data[rows].flatten(1), len(rows)
        potentials[rows] = _ascend(points, steps, batch, lr, generator)
        rounds = math.ceil(min(CHECKS * n, steps * batch) / batch)
        error += n * _marginal_error(points, potentials[rows], rounds, batch, generator)
        # A share of M draws deviates on average by sqrt(2 p / (pi M)) from its mean p = 1 / n.
        expected += n * math.sqrt(n / (2 * math.pi * rounds * batch)) * (n > 1)
    return Fitted(potentials, error / len(data), expected / len(data))


def groups(label: Tensor | None, count: int, device: torch.device) -> Iterator[tuple[int | None, Tensor]]:
    """Yields each class with its rows; None with all rows when there are no labels."""
    if label is None:
        yield None, torch.arange(count, device=device)
        return
    for c in label.unique().tolist():
        yield c, (label == c).nonzero()[:, 0].to(device)


def _ascend(points: Tensor, steps: int, batch: int, lr: float, generator: torch.Generator) -> Tensor:
    n = len(points)
    norms = points.square().sum(1) / 2
    g, mean = torch.zeros_like(norms), torch.zeros_like(norms)
    for step in range(steps):
        share = _visits(points, norms - g, batch, generator) / batch
        g = g + lr / math.sqrt(1 + step) * (1 - n * share)
        if step >= steps // 2:
            mean = mean + (g - mean) / (step - steps // 2 + 1)
    return mean - mean.mean()


def _visits(points: Tensor, offset: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Counts how many of `count` noise draws fall into each cell."""
    shape = (count, points.shape[1])
    z = torch.randn(shape, generator=generator, device=points.device, dtype=points.dtype)
    return torch.bincount((z @ points.T - offset).argmax(1), minlength=len(points)).to(points)


def _marginal_error(points: Tensor, g: Tensor, rounds: int, batch: int, generator: torch.Generator) -> float:
    offset, visits = points.square().sum(1) / 2 - g, torch.zeros_like(g)
    for _ in range(rounds):
        visits += _visits(points, offset, batch, generator)
    return (visits / (rounds * batch) - 1 / len(points)).abs().sum().item() / 2
