"""Embeddings of labels and times."""

import math

import torch
from torch import Tensor, nn


class LabelEmbedding(nn.Module):
    """A learned vector per class, and one more for "no label".

    Arguments:
        classes: Number of classes; labels are 0..classes - 1.
        width: Numbers per vector.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, count: int, label: Tensor | None, dropped: Tensor | None) -> Tensor:
        """Returns the vectors of `count` images, with shape (count, width).

        Arguments:
            count: Number of images.
            label: Class labels, with shape (count,); None drops all of them.
            dropped: True where the label is replaced by "no label", with shape (count,).
        """
        if label is None:
            return self.table.weight[-1].expand(count, -1)
        if label.shape != (count,):
            raise ValueError(f"label has shape {tuple(label.shape)}, expected ({count},); pass None when unconditional")
        return self.table(label if dropped is None else label.masked_fill(dropped, self.classes))


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in [0, 1], then a small network.

    Arguments:
        width: Numbers per vector.
        frequencies: Number of sines, and of cosines.
    """

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        # From one radian per unit of time to a thousand: times are told apart to about 1e-3.
        spaced = torch.exp(torch.linspace(0.0, math.log(1000.0), frequencies))
        self.register_buffer("frequencies", spaced, persistent=False)
        self.net = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times, with shape (B,), to shape (B, width)."""
        angles = t[:, None] * self.frequencies
        return self.net(torch.cat([angles.cos(), angles.sin()], 1))


def drop(label: Tensor | None, probability: float, generator: torch.Generator) -> Tensor | None:
    """Draws which labels to drop, each with the given probability.

    Returns:
        True where dropped, with shape (B,); None when there is no label or nothing to drop.
    """
    if label is None or probability == 0:
        return None
    return torch.rand(label.shape, generator=generator, device=label.device) < probability
