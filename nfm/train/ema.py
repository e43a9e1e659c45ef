"""The exponential moving average of a model's weights."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nfm.train.sharding import local


class Average:
    r"""A copy of a model whose weights follow it, starting at the model's first weights.

    .. math:: \bar w \leftarrow d\, \bar w + (1 - d)\, w

    Buffers are copied, not averaged.

    Arguments:
        model: The model to follow, on its device.
        decay: The decay d per update.

    Attributes:
        module: The averaged model, in evaluation mode and without gradients.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._blend = get_ema_multi_avg_fn(decay)
        self.follow(model)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Follows a model with the same weights from now on, divided over processes as the average's are."""
        # torch's AveragedModel would group its tensors anew and wait for the device at every update.
        self._pairs = ([local(p) for p in self.module.parameters()], [local(p) for p in model.parameters()])
        self._buffers = list(zip(self.module.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present weights."""
        self._blend(*self._pairs, None)  # pyright: ignore[reportArgumentType]
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
