"""A teacher's pairs with other noise: brought nearer to N(0, I), which the student samples from."""

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, full_precision, normal_like
from nfm.coupling.minibatch_ot import assign
from nfm.coupling.semidiscrete_ot import SemidiscreteOT


class Whitened(Coupling):
    """z with its mean taken off, and divided by standard deviations or by the root of the covariance.

    Arguments:
        pairs: The teacher's.
        mean: Of z, with shape (D,).
        covariance: Of z, with shape (D, D).
        how: "dimension" or "full".
    """

    def __init__(self, pairs: Coupling, mean: Tensor, covariance: Tensor, how: str) -> None:
        self._pairs, self._mean = pairs, mean.float()
        if how == "dimension":
            matrix = torch.diag(covariance.diagonal() ** -0.5)
        else:
            values, vectors = torch.linalg.eigh(covariance)
            matrix = vectors @ torch.diag(values**-0.5) @ vectors.T
        self._matrix = matrix.float()

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        pairs = self._pairs.pair(batch, generator)
        with full_precision(pairs.noise):
            z = (pairs.noise.flatten(1) - self._mean) @ self._matrix
        return Pairs(pairs.data, z.view_as(pairs.noise), pairs.label)


class Reassigned(Coupling):
    """Noise of N(0, I) in the place of z, assigned to the z of the same class in the batch at least squared distance.

    Arguments:
        pairs: The teacher's.
    """

    def __init__(self, pairs: Coupling) -> None:
        self._pairs = pairs

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        pairs = self._pairs.pair(batch, generator)
        noise = normal_like(pairs.noise, generator)
        label = torch.zeros(len(noise)) if pairs.label is None else pairs.label
        order = torch.arange(len(noise), device=noise.device)
        for c in label.unique():
            rows = (label == c).nonzero()[:, 0]
            order[rows] = rows[assign(pairs.noise[rows], noise[rows])]
        return Pairs(pairs.data, noise[order], pairs.label)


class OntoDraws(Coupling):
    """Noise of N(0, I), sent to a stored z by a potential of each, and by it to that draw's image.

    Arguments:
        noise: All stored z, with shape (N K, C, H, W).
        label: Their labels, with shape (N K,), or None.
        potentials: Of each, with shape (N K,).
        data: The image of each, with shape (N K, C, H, W).
    """

    def __init__(self, noise: Tensor, label: Tensor | None, potentials: Tensor, data: Tensor) -> None:
        self._transport = SemidiscreteOT(noise, label, potentials)
        self._data = data[self._transport.order]

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        noise = normal_like(batch.data, generator)
        return Pairs(self._data[self._transport.choose(noise, batch.label)], noise, batch.label)
