"""The linear path between data and noise, and the law of training times."""

import torch
from torch import Tensor


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Evaluates the linear path and its time derivative.

    .. math:: x_t = (1 - t)\, x + t\, z, \qquad v_t = z - x

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2023). https://arxiv.org/abs/2210.02747

    Arguments:
        data: Endpoints at t = 0, with shape (B, *event).
        noise: Endpoints at t = 1, with shape (B, *event).
        t: Times in [0, 1], with shape (B,).

    Returns:
        The point x_t and the velocity v_t, both with shape (B, *event).
    """
    s = t.reshape(-1, *[1] * (data.ndim - 1))
    return (1 - s) * data + s * noise, noise - data


def logit_normal(like: Tensor, generator: torch.Generator, *, mean: float, std: float) -> Tensor:
    """Draws times t = sigmoid(n), n ~ N(mean, std^2), one for each of a batch.

    Arguments:
        like: A batch, with shape (B, *event); gives B, device and dtype.
        generator: Source of the draws, on the batch's device.
        mean: Mean of n.
        std: Standard deviation of n.

    Returns:
        Times in (0, 1), with shape (B,).
    """
    n = torch.randn(len(like), generator=generator, device=like.device, dtype=like.dtype)
    return torch.sigmoid(mean + std * n)
