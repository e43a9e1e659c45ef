"""Invertible maps with a log-determinant."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible map between data and noise, which may depend on a label.

    For a fixed label decode(encode(x)) = x, and log_det is the logarithm of the absolute
    determinant of encode's Jacobian, in nats, summed over the event.
    """

    @abstractmethod
    def encode(self, x: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to noise.

        Arguments:
            x: Data, with shape (B, *event).
            label: Class labels, with shape (B,); None where there are none or all are dropped. A
                map that does not depend on labels takes no notice of them.
            dropped: True where the label is dropped, with shape (B,).

        Returns:
            Noise with shape (B, *event), and log_det with shape (B,).
        """

    @abstractmethod
    def decode(self, z: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        """Maps noise to data, both with shape (B, *event); labels as in `encode`."""

    def forward(self, x: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes, so that wrappers which hook the call see it."""
        return self.encode(x, label, dropped)

    def log_prob(self, x: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        r"""Evaluates the log-density of data whose noise is N(0, I).

        .. math:: \log p(x) = \log N(f(x); 0, I) + \log |\det \partial f / \partial x|

        Arguments:
            x: Data, with shape (B, *event).
            label: Class labels, with shape (B,).
            dropped: True where the label is dropped, with shape (B,).

        Returns:
            The log-density in nats, with shape (B,).
        """
        z, log_det = self.encode(x, label, dropped)
        return log_det - 0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


class Affine(Bijection):
    """z = (x - shift) * exp(-log_scale), elementwise: its inverse and density are known exactly.

    Arguments:
        shift: Shift, with the shape of an event.
        log_scale: Logarithm of the scale, with the shape of an event.
    """

    shift: Tensor
    log_scale: Tensor

    def __init__(self, shift: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("log_scale", log_scale)

    def encode(self, x: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = (x - self.shift) * torch.exp(-self.log_scale)
        return z, -self.log_scale.expand_as(x).flatten(1).sum(1)

    def decode(self, z: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        return z * torch.exp(self.log_scale) + self.shift
