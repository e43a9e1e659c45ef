"""Optimal transport from the whole of N(0, I) to the training images, by one potential per image."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, normal_like
from nfm.random import generator_for


class SemidiscreteOT(Coupling):
    r"""z ~ N(0, I), paired with the training image whose cell it falls into.

    .. math:: x = x_j, \qquad j = \arg\min_j \tfrac{1}{2} \lVert z - x_j \rVert^2 - g_j

    With the right potentials g every cell has the same mass. A batch gives labels only: its images are replaced by
    those that the noise chooses, within the class when there are labels.

    References:
        Flow Matching with Semidiscrete Couplings (Mousavi-Hosseini et al., 2025). https://arxiv.org/abs/2509.25519

    Arguments:
        data: All training images, with shape (N, C, H, W).
        label: Their labels, with shape (N,); None pairs over the whole set.
        potentials: g, with shape (N,).
    """

    def __init__(self, data: Tensor, label: Tensor | None, potentials: Tensor) -> None:
        if potentials.shape != (len(data),):
            raise ValueError(
                f"potentials have shape {tuple(potentials.shape)}, expected ({len(data)},)"
            )
        self.data, self.label = data, label
        self._flat = data.flatten(1)
        # argmin of the cost is argmax of z.x_j - (|x_j|^2 / 2 - g_j).
        self._offset = self._flat.square().sum(1) / 2 - potentials.to(data)
        self._members = dict(groups(label, len(data), data.device))

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        noise = normal_like(batch.data, generator)
        flat = noise.flatten(1)
        if self.label is None:
            chosen = self._nearest(flat, self._members[None])
        else:
            if batch.label is None:
                raise ValueError("label is None, but the potentials are per class; pass labels")
            chosen = torch.empty(len(flat), dtype=torch.long, device=flat.device)
            for c in batch.label.unique().tolist():
                rows = batch.label == c
                chosen[rows] = self._nearest(flat[rows], self._members[c])
        # Without labels of its own the coupling may leave the batch's class.
        label = batch.label if self.label is not None else None
        return Pairs(self.data[chosen], noise, label)

    def _nearest(self, z: Tensor, members: Tensor) -> Tensor:
        return members[(z @ self._flat[members].T - self._offset[members]).argmax(1)]


@dataclass(frozen=True)
class Fitted:
    """Potentials and how well they do.

    Attributes:
        potentials: g, with shape (N,).
        marginal_error: Total variation distance between the mass of the cells, estimated on fresh noise, and the
            uniform distribution; the mean over classes. In [0, 1], and never quite 0 by sampling error.
    """

    potentials: Tensor
    marginal_error: float


def fit_potentials(
    data: Tensor, label: Tensor | None, *, steps: int, batch: int, lr: float, seed: int
) -> Fitted:
    r"""Fits the potentials by averaged stochastic gradient ascent on the semidual.

    The gradient of the semidual in g_j is 1/n - P(z falls into cell j). Steps are lr / sqrt(s), and the mean of the
    second half of the iterates is returned.

    References:
        Stochastic Optimization for Large-scale Optimal Transport (Genevay et al., 2016).
        https://arxiv.org/abs/1605.08527

    Arguments:
        data: All training images, with shape (N, C, H, W).
        label: Their labels, with shape (N,); None fits over the whole set.
        steps: Gradient steps per class.
        batch: Noise draws per step.
        lr: First step size, in units of squared distance times the number of points.
        seed: Seed of the noise.
    """
    potentials = torch.zeros(len(data), device=data.device)
    errors = []
    for number, (_, members) in enumerate(groups(label, len(data), data.device)):
        generator = generator_for(seed, number, device=data.device)
        points = data[members].flatten(1)
        potentials[members] = _ascend(points, steps, batch, lr, generator)
        errors.append(_marginal_error(points, potentials[members], generator))
    return Fitted(potentials, float(sum(errors) / len(errors)))


def groups(
    label: Tensor | None, count: int, device: torch.device
) -> Iterator[tuple[int | None, Tensor]]:
    """Yields each class with its members' rows; None with all rows when there are no labels."""
    if label is None:
        yield None, torch.arange(count, device=device)
        return
    for c in label.unique().tolist():
        yield c, (label == c).nonzero()[:, 0].to(device)


def _ascend(
    points: Tensor, steps: int, batch: int, lr: float, generator: torch.Generator
) -> Tensor:
    n = len(points)
    norms = points.square().sum(1) / 2
    g, mean = torch.zeros_like(norms), torch.zeros_like(norms)
    for step in range(steps):
        mass = _cells(points, norms - g, batch, generator) / batch
        g = g + lr * n * (1 / n - mass) / (1 + step) ** 0.5
        if step >= steps // 2:
            mean += (g - mean) / (step - steps // 2 + 1)
    return mean - mean.mean()


def _cells(points: Tensor, offset: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Counts how many of `count` noise draws fall into each cell."""
    shape = (count, points.shape[1])
    z = torch.randn(shape, generator=generator, device=points.device, dtype=points.dtype)
    return torch.bincount((z @ points.T - offset).argmax(1), minlength=len(points)).to(points)


def _marginal_error(points: Tensor, g: Tensor, generator: torch.Generator) -> Tensor:
    n, rounds = len(points), 100
    offset = points.square().sum(1) / 2 - g
    visits = sum(_cells(points, offset, 10 * n, generator) for _ in range(rounds))
    return (visits / (10 * n * rounds) - 1 / n).abs().sum() / 2
