"""The teacher's pairs, learnt as a map from noise to datum in one step."""

import torch

from nfm.coupling.base import Batch, Coupling, Pairs


class InverseRegression(Coupling):
    """The pairs of a teacher's coupling for a student that knows t = 1 only: the one-step rival of a flow.

    It learns E[x | z, c] by regression. Where the teacher's noise determines the datum that is the teacher's inverse,
    without its sequential decoding; where it does not, since x is clean and z is of a noised copy, it is a blur.

    References:
        BiFlow: Bidirectional Normalizing Flow (2025), in its simplest form. https://arxiv.org/abs/2512.10953

    Arguments:
        teacher: The teacher's coupling.
    """

    one_step = True

    def __init__(self, teacher: Coupling) -> None:
        self._teacher = teacher

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        return self._teacher.pair(batch, generator)
