"""How near samples are to real images: Fréchet distance, KID, precision and recall, as torch-fidelity defines them.

The Fréchet distance is called FID on Inception's features and FD on any others.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nfm.metrics.statistics import Statistics

ROWS = 1000  # of a matrix of distances at once; the whole one between 10,000 images takes 0.8 GB


@dataclass(frozen=True)
class Fidelity:
    """Measures of a set of samples against a set of real images.

    Attributes:
        fd: Fréchet distance of the two Gaussians fitted to the features.
        kid: Kernel distance (squared MMD, cubic kernel), unbiased, so it can fall below 0.
        precision: Share of samples inside the neighbourhood of a real image.
        recall: Share of real images inside the neighbourhood of a sample.
    """

    fd: float
    kid: float
    precision: float
    recall: float


def frechet(real: Statistics, fake: Statistics) -> float:
    r"""Returns the Fréchet distance of the Gaussians with the means and covariances of both sets.

    .. math:: \mathrm{FD} = \lVert \mu - \nu \rVert^2
        + \operatorname{tr}\bigl(\Sigma + \Gamma - 2 (\Sigma \Gamma)^{1/2}\bigr)

    With roots A A^T of the one and B B^T of the other covariance, the trace of the root of their product is the sum
    of the singular values of A^T B. Small ones keep their digits, where a root of an eigenvalue would lose half of
    them, and it takes a fraction of the time that the eigenvalues of a product take, which is not symmetric.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017).
        https://arxiv.org/abs/1706.08500
    """
    _check_widths(real, fake)
    cross = torch.linalg.svdvals(_root(real.covariance).T @ _root(fake.covariance)).sum()
    apart = (real.mean - fake.mean).square().sum()
    return (apart + real.covariance.trace() + fake.covariance.trace() - 2 * cross).item()


def fidelity(
    real: Statistics,
    fake: Statistics,
    *,
    kid_subset_size: int = 500,
    kid_subsets: int = 20,
    neighbours: int = 3,
    seed: int = 0,
) -> Fidelity:
    r"""Measures samples against real images by their features, in float64.

    The Fréchet distance is over all images; KID, precision and recall over the rows that the
    statistics keep. KID is the mean over random subsets of the unbiased squared MMD with the kernel
    (x.y / F + 1)^3; it spreads least with large subsets, and 20 of 500 cost a tenth of the usual 100
    of 1000. Precision and recall take as radius the distance to the third nearest neighbour, which
    shrinks as a set grows, so both sets are cut to their first rows, as many as the smaller has.

    References:
        KID: Demystifying MMD GANs (Bińkowski et al., 2018). https://arxiv.org/abs/1801.01401
        Improved Precision and Recall (Kynkäänniemi et al., 2019). https://arxiv.org/abs/1904.06991

    Arguments:
        real: Statistics of real images in random order.
        fake: Statistics of samples in random order.
        kid_subset_size: Images of each set in a subset of KID; fewer if a set has fewer.
        kid_subsets: Number of subsets.
        neighbours: Which nearest neighbour gives the radius.
        seed: Seed of KID's subsets.
    """
    _check_widths(real, fake)
    smaller = min(len(real.rows), len(fake.rows))
    if smaller <= neighbours:
        raise ValueError(f"the smaller set has {smaller} images, expected more than {neighbours}")
    there, here = real.rows.double(), fake.rows.double()
    kid = _kid(here, there, min(kid_subset_size, smaller), kid_subsets, seed)
    there, here = there[:smaller], here[:smaller]
    return Fidelity(
        fd=frechet(real, fake),
        kid=kid,
        precision=_share_inside(here, there, neighbours),
        recall=_share_inside(there, here, neighbours),
    )


def _root(covariance: Tensor) -> Tensor:
    """Returns a matrix A with A A^T = covariance, which may be singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def _kid(here: Tensor, there: Tensor, size: int, subsets: int, seed: int) -> float:
    """Returns the mean over subsets; for a seed they are those that torch-fidelity takes."""
    choose = np.random.RandomState(seed).choice
    values = []
    for _ in range(subsets):
        x, y = (rows[torch.from_numpy(choose(len(rows), size, replace=False))] for rows in (here, there))
        values.append(_inner(x) + _inner(y) - 2 * _kernel(x, y).mean())
    return torch.stack(values).mean().item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # a power takes ten times as long


def _inner(x: Tensor) -> Tensor:
    """Returns the kernel's mean over pairs of different rows."""
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


def _share_inside(x: Tensor, y: Tensor, neighbours: int) -> float:
    """Returns the share of the rows of x that are as near to a row of y as its own neighbours are."""
    # A row's nearest neighbour is itself.
    radius = torch.cat([torch.cdist(part, y).kthvalue(neighbours + 1).values for part in y.split(ROWS)])
    inside = torch.cat([(torch.cdist(part, y) <= radius).any(dim=1) for part in x.split(ROWS)])
    return inside.double().mean().item()


def _check_widths(real: Statistics, fake: Statistics) -> None:
    if real.mean.shape != fake.mean.shape:
        raise ValueError(f"features are {len(real.mean)} and {len(fake.mean)} wide, expected the same")
