"""What a student learns: the velocity of a flow, or a single step."""

import torch
from torch import Tensor, nn

from nfm.coupling.base import normal_like
from nfm.nn.embed import drop
from nfm.student.path import interpolate, logit_normal


def student_loss(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    label: Tensor | None,
    generator: torch.Generator,
    *,
    time_mean: float,
    time_std: float,
    label_drop: float,
    share: float = 0.0,
    below: float = 1.0,
) -> Tensor:
    r"""Evaluates the squared error of a velocity on the linear paths of given pairs.

    .. math:: \mathbb{E}\, \lVert g(x_t, c, t) - (z - x) \rVert^2 / D,
        \qquad t = \sigma(n),\; n \sim N(\mu, s^2)

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2023). https://arxiv.org/abs/2210.02747

    Arguments:
        model: The velocity network, called as model(x, t, label, dropped).
        data: Clean images x, with shape (B, *event).
        noise: The noise z coupled with them, with shape (B, *event).
        label: Class labels, with shape (B,), or None when unconditional.
        generator: Source of times and of dropped labels, on the data's device.
        time_mean: Mean of n.
        time_std: Standard deviation of n.
        label_drop: Probability that a label is dropped.
        share: Probability that a pair's noise is replaced by an independent draw of N(0, I).
        below: Time from which on none is.

    Returns:
        The mean over batch and dimensions, a scalar.
    """
    t = logit_normal(len(data), generator, mean=time_mean, std=time_std, device=data.device, dtype=data.dtype)
    if share:
        drawn = torch.rand(len(data), generator=generator, device=data.device)
        replaced = ((drawn < share) & (t < below)).reshape(-1, *[1] * (data.ndim - 1))
        noise = torch.where(replaced, normal_like(noise, generator), noise)
    x_t, v_t = interpolate(data, noise, t)
    prediction = model(x_t, t, label, drop(label, label_drop, generator))
    return (prediction - v_t).square().mean()


def one_step_loss(
    model: nn.Module,
    data: Tensor,
    noise: Tensor,
    label: Tensor | None,
    generator: torch.Generator,
    *,
    label_drop: float,
) -> Tensor:
    r"""Evaluates the squared error of the data that a single Euler step from t = 1 to 0 ends at.

    .. math:: \mathbb{E}\, \lVert (z - g(z, c, 1)) - x \rVert^2 / D

    Arguments:
        model: The velocity network, called as model(x, t, label, dropped).
        data: Clean images x, with shape (B, *event).
        noise: The noise z coupled with them, with shape (B, *event).
        label: Class labels, with shape (B,), or None when unconditional.
        generator: Source of dropped labels, on the data's device.
        label_drop: Probability that a label is dropped.

    Returns:
        The mean over batch and dimensions, a scalar.
    """
    velocity = model(noise, torch.ones(len(data)).to(data), label, drop(label, label_drop, generator))
    return (noise - velocity - data).square().mean()
