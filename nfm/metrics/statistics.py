"""Mean and covariance of features that come batch by batch, and the first rows of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 10_000  # rows kept for KID, precision and recall, which want the features themselves


@dataclass(frozen=True)
class Statistics:
    """What is kept of a set of features, whatever its size.

    Attributes:
        count: Number of images.
        mean: With shape (F,), float64.
        covariance: Unbiased (over count - 1), with shape (F, F), float64.
        rows: The first features, at most `KEPT`, with shape (K, F).
    """

    count: int
    mean: Tensor
    covariance: Tensor
    rows: Tensor


class Accumulator:
    r"""Sums up features batch by batch in float64, in memory that their number does not change.

    Sums of squares would cancel where the mean is large beside the spread. So each batch is centred
    on its own mean, and two sets with the counts n, m and the means a, b join as

    .. math:: S = S_a + S_b + \frac{n m}{n + m} (b - a)(b - a)^\top

    where S is the sum of the outer products of deviations from the mean.

    References:
        Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub and
        LeVeque, 1979). https://doi.org/10.1007/978-3-642-51461-6_3

    Arguments:
        keep: How many of the first rows are kept.
    """

    def __init__(self, keep: int = KEPT) -> None:
        self._keep = keep
        self._count = 0
        self._mean = self._scatter = torch.zeros(())
        self._rows: list[Tensor] = []
        self._kept = 0

    def add(self, features: Tensor) -> None:
        """Takes the next features, with shape (B, F), on any device."""
        if features.ndim != 2 or (self._count and features.shape[1] != len(self._mean)):
            wanted = f"(B, {len(self._mean)})" if self._count else "(B, F)"
            raise ValueError(f"features have shape {tuple(features.shape)}, expected {wanted}")
        if not len(features):
            return
        if self._kept < self._keep:
            # A copy: a view would hold the whole batch.
            self._rows.append(features[: self._keep - self._kept].detach().cpu().clone())
            self._kept += len(self._rows[-1])
        x = features.detach().cpu().double()
        mean = x.mean(dim=0)
        centred = x - mean
        scatter = centred.T @ centred
        if self._count:
            shift, total = mean - self._mean, self._count + len(x)
            scatter += self._scatter + torch.outer(shift, shift) * (self._count * len(x) / total)
            mean = self._mean + shift * (len(x) / total)
        self._mean, self._scatter = mean, scatter
        self._count += len(x)

    def statistics(self) -> Statistics:
        """Returns the statistics of all features so far, at least two."""
        if self._count < 2:
            raise ValueError(f"there are features of {self._count} images, expected at least 2 for a covariance")
        return Statistics(self._count, self._mean, self._scatter / (self._count - 1), torch.cat(self._rows))
