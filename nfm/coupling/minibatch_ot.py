"""Noise permuted inside a batch by optimal transport."""

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, full_precision, normal_like


class MinibatchOT(Coupling):
    """z ~ N(0, I), permuted so that the batch's sum of squared distances is least.

    Labels bind: noise is permuted among images of one class only, since a conditional model samples
    each class from N(0, I). Permuting across classes gives every class its own part of the noise,
    which no sampler knows of.

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., 2024). https://arxiv.org/abs/2302.00482

    Arguments:
        across_classes: Permute over the whole batch although there are labels.
    """

    def __init__(self, across_classes: bool = False) -> None:
        self.across_classes = across_classes

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        noise = normal_like(batch.data, generator)
        if batch.label is None or self.across_classes:
            order = assign(batch.data, noise)
        else:
            order = torch.arange(len(noise), device=noise.device)
            for c in batch.label.unique():
                rows = (batch.label == c).nonzero()[:, 0]
                order[rows] = rows[assign(batch.data[rows], noise[rows])]
        return Pairs(batch.data, noise[order], batch.label)


def assign(data: Tensor, noise: Tensor) -> Tensor:
    """Solves the assignment of least total squared distance exactly.

    Arguments:
        data: Points, with shape (B, *event).
        noise: Points, with shape (B, *event).

    Returns:
        The row of `noise` for each row of `data`, a permutation with shape (B,).
    """
    from scipy.optimize import linear_sum_assignment  # other couplings need not wait for its import

    # |x - z|^2 = |x|^2 + |z|^2 - 2 x.z, and the norms add the same to every permutation.
    with full_precision(data):
        cost = -(data.flatten(1) @ noise.flatten(1).T)
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, device=data.device)
