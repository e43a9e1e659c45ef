"""The teacher's training loss and its likelihood in bits."""

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
    r"""Negative log-likelihood of noised images, per dimension and without its constant.

    .. math:: \tfrac{1}{2}\, \overline{z^2} - \tfrac{1}{D} \log|\det|, \qquad z = f(x + \eta\, \epsilon, c)

    Arguments:
        model: A bijection; its call encodes.
        data: Images, with shape (B, *event).
        label: Class labels, with shape (B,), or None when unconditional.
        generator: Source of noise and of dropped labels, on the data's device.
        noise_std: eta, on the scale of the data.
        label_drop: Probability that a label is dropped.

    Returns:
        The mean over the batch, in nats per dimension, a scalar.
    """
    eps = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    z, log_det = model(data + noise_std * eps, label, drop(label, label_drop, generator))
    # At least float32, also under autocast: the log-determinant is a sum of many small terms.
    dtype = torch.promote_types(z.dtype, torch.float32)
    return 0.5 * z.to(dtype).square().mean() - log_det.to(dtype).mean() / data[0].numel()


def bits_per_dim(model: Bijection, data: Tensor, label: Tensor | None = None) -> Tensor:
    r"""Negative log2-likelihood per dimension of images on the scale of 256 levels.

    The density is that of the images as given, which are continuous: the caller adds the noise that the teacher was
    trained with, so the figure is comparable between teachers of equal noise only.

    .. math:: -\frac{\log_2 p(x)}{D} + \log_2 127.5

    Arguments:
        model: A bijection to N(0, I).
        data: Images on [-1, 1] plus noise, with shape (B, *event).
        label: Class labels, with shape (B,).

    Returns:
        Bits per dimension of each image, with shape (B,).
    """
    z, log_det = model.encode(data, label)
    d = data[0].numel()
    nats = 0.5 * (z**2).flatten(1).sum(1) + 0.5 * d * math.log(2 * math.pi) - log_det
    # One level of 256 is 1 / 127.5 wide on [-1, 1].
    return nats / d / math.log(2) + math.log2(127.5)
