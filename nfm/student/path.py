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


def logit_normal(
    count: int,
    generator: torch.Generator,
    *,
    mean: float,
    std: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draws times t = sigmoid(n), n ~ N(mean, std^2).

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al.,
        2024). https://arxiv.org/abs/2403.03206

    Arguments:
        count: Number of times, B.
        generator: Source of the draws, on the device.
        mean: Mean of n.
        std: Standard deviation of n.
        device: Where the times go; None is the default device.
        dtype: Their type; None is the default type.

    Returns:
        Times in (0, 1), with shape (B,).
    """
    n = torch.randn(count, generator=generator, device=device, dtype=dtype)
    return torch.sigmoid(mean + std * n)
