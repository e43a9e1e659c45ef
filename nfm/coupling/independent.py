"""Noise drawn without a look at the data."""

import torch

from nfm.coupling.base import Batch, Coupling, Pairs, normal_like


class Independent(Coupling):
    """z ~ N(0, I), independent of x: plain flow matching.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2023). https://arxiv.org/abs/2210.02747
    """

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        return Pairs(batch.data, normal_like(batch.data, generator), batch.label)
