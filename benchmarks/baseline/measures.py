"""The exact assignment and the Fréchet distance, by their definitions."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nfm.metrics.statistics import Statistics


def costs(data: Tensor, noise: Tensor) -> Tensor:
    """Returns all squared distances, with shape (B, B), of two sets of shape (B, *event)."""
    return (data.flatten(1)[:, None] - noise.flatten(1)).square().sum(2)


def assign(data: Tensor, noise: Tensor) -> Tensor:
    """Returns the row of `noise` for each row of `data` of least total squared distance."""
    distances = torch.cdist(data.flatten(1), noise.flatten(1)).square()
    return torch.from_numpy(linear_sum_assignment(distances.numpy())[1])


def frechet(real: Statistics, fake: Statistics) -> float:
    """Returns |mu - nu|^2 + tr S + tr G - 2 tr (S G)^(1/2), by the eigenvalues of S G."""
    s, g = real.covariance.numpy(), fake.covariance.numpy()
    root = np.sqrt(np.linalg.eigvals(s @ g).astype(complex)).real.sum()
    return float((real.mean - fake.mean).square().sum() + s.trace() + g.trace() - 2 * root)
