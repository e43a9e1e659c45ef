"""The teacher's training loss, and its likelihood in bits."""

import math

import torch
from torch import Tensor, nn

from nfm.nn.embed import drop
from nfm.teacher.bijection import Bijection


def teacher_loss(
    model: nn.Module,
    data: Tensor,
    label: Tensor | None,
    generator: torch.Generator,
    *,
    noise_std: float,
    label_drop: float,
) -> Tensor:
    r"""Evaluates the negative log-likelihood of noised images, without its constant.

    .. math:: \tfrac{1}{2}\, \overline{z^2} - \overline{\log |\det|} / D,
        \qquad z = f(x + \eta\, \epsilon, c)

    Arguments:
        model: A bijection, or a wrapper of one; calling it encodes.
        data: Images x, with shape (B, *event) and D numbers each.
        label: Class labels, with shape (B,), or None when unconditional.
        generator: Source of noise and of dropped labels, on the data's device.
        noise_std: eta, on the scale of the data.
        label_drop: Probability that a label is dropped.

    Returns:
        The mean over the batch, in nats per dimension, a scalar.
    """
    eps = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    z, log_det = model(data + noise_std * eps, label, drop(label, label_drop, generator))
    return 0.5 * z.square().mean() - log_det.mean() / data[0].numel()


def bits_per_dim(model: Bijection, data: Tensor, label: Tensor | None = None) -> Tensor:
    r"""Evaluates the negative log2-likelihood per dimension, on the scale of 256 levels.

    .. math:: -\log_2 p(x) / D + \log_2 127.5

    It is the density of the images as they are given. A teacher models data + eta * eps, so the
    caller adds that noise, and the figure compares teachers of equal eta only; it is not the
    bits that a lossless code of the 256 levels would take.

    Arguments:
        model: A bijection to N(0, I).
        data: Images on [-1, 1] plus noise, with shape (B, *event) and D numbers each.
        label: Class labels, with shape (B,), or None when unconditional.

    Returns:
        Bits per dimension of each image, with shape (B,).
    """
    nats = -model.log_prob(data, label) / data[0].numel()
    # Levels 0..255 on [-1, 1] are 1 / 127.5 apart, so a density per level is that much smaller.
    return nats / math.log(2) + math.log2(127.5)
