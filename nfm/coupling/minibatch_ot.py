"""Noise permuted inside a batch by optimal transport."""

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, full_precision, normal_like
from nfm.random import generator_for

_OF_THE_WHOLE = -1  # where forward passes have the place of their first image


class MinibatchOT(Coupling):
    """z ~ N(0, I), permuted so that the batch's sum of squared distances is least.

    Labels bind: noise is permuted among images of one class only, since a conditional model samples
    each class from N(0, I). Permuting across classes gives every class its own part of the noise,
    which no sampler knows of.

    References:
        Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        (Tong et al., 2024). https://arxiv.org/abs/2302.00482

    Arguments:
        across_classes: Permute among all images of a batch although there are labels.
        whole_batch: In training, permute over the batch of an update, whatever processes and forward passes it is
            divided among. Each of them reads all of it and solves for all of it.
    """

    def __init__(self, across_classes: bool = False, whole_batch: bool = False) -> None:
        self.across_classes, self.whole_batch = across_classes, whole_batch
        self._solved: tuple[tuple[int, int], Tensor] | None = None

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        whole = batch.whole
        if whole is None or not self.whole_batch:
            return Pairs(batch.data, self._noise(batch, generator), batch.label)
        update = whole.seed, whole.step
        if self._solved is None or self._solved[0] != update:
            # Not the generator of a forward pass, which draws other numbers in other processes.
            own = generator_for(*update, _OF_THE_WHOLE, device=generator.device)
            self._solved = update, self._noise(whole.read(), own)
        return Pairs(batch.data, self._solved[1][whole.part], batch.label)

    def _noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        noise = normal_like(batch.data, generator)
        if batch.label is None or self.across_classes:
            return noise[assign(batch.data, noise)]
        order = torch.arange(len(noise), device=noise.device)
        for c in batch.label.unique():
            rows = (batch.label == c).nonzero()[:, 0]
            order[rows] = rows[assign(batch.data[rows], noise[rows])]
        return noise[order]


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
