"""The velocity network (SiT) and classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfm.nn.embed import LabelEmbedding, TimeEmbedding
from nfm.nn.patches import patchify, token_shape, unpatchify
from nfm.nn.transformer import ModulatedLayer, modulate
from nfm.student.fast import Network

# The velocity as a function of x, with shape (B, *event), and t, with shape (B,).
Velocity = Callable[[Tensor, Tensor], Tensor]


class SiT(nn.Module):
    """A transformer on patches, modulated by time and label, whose output is a velocity.

    Modulation and last projection start at zero (adaLN-zero): untrained, every layer is the
    identity and the velocity is zero.

    References:
        SiT (Ma et al., 2024). https://arxiv.org/abs/2401.08740

    Arguments:
        shape: Image shape (C, H, W).
        patch: Height and width of a token in pixels; (1, W) makes rows of pixels.
        depth: Transformer layers.
        width: Numbers per token.
        head_size: Numbers per attention head.
        classes: Number of classes, or None when unconditional.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: tuple[int, int],
        depth: int,
        width: int,
        head_size: int,
        classes: int | None,
    ) -> None:
        super().__init__()
        self.shape, self.patch, self.classes = shape, patch, classes
        tokens, size = token_shape(shape, patch)
        self.project = nn.Linear(size, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.time = TimeEmbedding(width)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.layers = nn.ModuleList(ModulatedLayer(width, head_size) for _ in range(depth))
        # One matrix product gives the modulation of all layers and of the last norm.
        self.modulation = nn.Linear(width, (6 * depth + 2) * width)
        self.head = nn.Linear(width, size)
        for last in (self.modulation, self.head):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        """Evaluates the velocity field.

        Arguments:
            x: Points on the path, with shape (B, C, H, W).
            t: Times in [0, 1], with shape (B,).
            label: Class labels, with shape (B,); None where there are none or all are dropped.
            dropped: True where the label is dropped, with shape (B,).

        Returns:
            Velocities, with shape (B, C, H, W).
        """
        parts = self._modulation(len(x), t, label, dropped)
        h = self.project(patchify(x, self.patch)) + self.position
        for i, layer in enumerate(self.layers):
            h = layer(h, parts[6 * i : 6 * i + 6])
        shift, scale = parts[-2:]
        return unpatchify(self.head(modulate(h, shift, scale)), self.shape, self.patch)

    def _modulation(self, count: int, t: Tensor, label: Tensor | None, dropped: Tensor | None) -> tuple[Tensor, ...]:
        """Returns six modulations a layer and two of the last norm, with shape (B, 1, width)."""
        condition = self.time(t)
        if self.label is not None:
            condition = condition + self.label(count, label, dropped)
        modulation = self.modulation(functional.silu(condition))
        return modulation[:, None].chunk(6 * len(self.layers) + 2, -1)


def guided(model: Network, label: Tensor | None, guidance: float = 1.0) -> Velocity:
    r"""Binds labels and classifier-free guidance to a velocity network.

    .. math:: v = v_u + w\, (v_c - v_u)

    References:
        Classifier-Free Diffusion Guidance (Ho & Salimans, 2022). https://arxiv.org/abs/2207.12598

    Arguments:
        model: The network, or what calls it.
        label: Class labels, with shape (B,), or None for the unconditional velocity.
        guidance: w; 1 is the plain conditional velocity, 0 the unconditional one.

    Returns:
        The velocity as a function of x, with shape (B, *event), and t, with shape (B,). One call
        is one function evaluation, also where guidance doubles the batch that is computed.
    """
    if label is None or guidance == 1:
        return lambda x, t: model(x, t, label, None)
    if guidance == 0:
        return lambda x, t: model(x, t, None, None)
    dropped = torch.arange(2 * len(label), device=label.device) >= len(label)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, label]), dropped)
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return velocity
