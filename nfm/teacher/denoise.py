"""Samples of the teacher, and the step that takes the training noise off them."""

import torch
from torch import Tensor

from nfm.teacher.bijection import Bijection
from nfm.teacher.tarflow import TarFlow


def sample_teacher(
    model: TarFlow,
    z: Tensor,
    label: Tensor | None = None,
    *,
    guidance: float = 0.0,
    chunk: int = 1,
    tolerance: float = 0.0,
) -> Tensor:
    """Decodes noise to images, which are distributed as data plus the training noise.

    Arguments:
        model: The teacher.
        z: Noise from N(0, I), with shape (B, C, H, W).
        label: Class labels, with shape (B,), or None when unconditional.
        guidance: w of a = a_c + w (a_c - a_u), and the same for b; 0 is none.
        chunk: Tokens solved for at once; see `nfm.teacher.autoregressive.AutoregressiveBlock.decode`.
        tolerance: Of a chunk's sweeps.

    Returns:
        Images, with shape (B, C, H, W).
    """
    with torch.inference_mode():
        images = model.decode(z, label, guidance=guidance, chunk=chunk, tolerance=tolerance)
    return images.clone()  # out here a tensor that gradients may be taken at


def denoise(model: Bijection, y: Tensor, label: Tensor | None, noise_std: float) -> Tensor:
    r"""Estimates clean images by Tweedie's formula from the teacher's own score.

    .. math:: \mathbb{E}[x \mid y, c] = y + \eta^2\, \nabla_y \log p(y \mid c)

    References:
        Normalizing Flows are Capable Generative Models (Zhai et al., 2024).
        https://arxiv.org/abs/2412.06329

    Arguments:
        model: The teacher, whose density is that of noised data.
        y: Noised images, with shape (B, C, H, W).
        label: Class labels, with shape (B,), or None when unconditional.
        noise_std: eta, the standard deviation of the noise in y, model scale [-1, 1].

    Returns:
        Images, with shape (B, C, H, W), without a gradient.
    """
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        (score,) = torch.autograd.grad(model.log_prob(leaf, label).sum(), leaf)
    return y.detach() + noise_std**2 * score
