"""Samples of the teacher, and the step that takes the training noise off them."""

import torch
from torch import Tensor

from nfm.teacher.tarflow import TarFlow


@torch.no_grad()
def sample_teacher(
    model: TarFlow, z: Tensor, label: Tensor | None = None, *, guidance: float = 0.0
) -> Tensor:
    """Decodes noise from N(0, I) to images, which are data plus the training noise.

    Arguments:
        model: The teacher.
        z: Noise, with shape (B, C, H, W).
        label: Class labels, with shape (B,).
        guidance: Strength of guidance, 0 for none.
    """
    return model.decode(z, label, guidance=guidance)


def denoise(model: TarFlow, y: Tensor, label: Tensor | None, noise_std: float) -> Tensor:
    r"""Estimates the clean image by Tweedie's formula from the teacher's own score.

    .. math:: \hat{x} = y + \eta^2\, \nabla_y \log p(y \mid c)

    References:
        Normalizing Flows are Capable Generative Models (Zhai et al., 2024). https://arxiv.org/abs/2412.06329

    Arguments:
        model: The teacher.
        y: Noisy images, with shape (B, C, H, W).
        label: Class labels, with shape (B,).
        noise_std: eta, the standard deviation of the noise in y.
    """
    with torch.enable_grad():
        x = y.detach().requires_grad_()
        (score,) = torch.autograd.grad(model.log_prob(x, label).sum(), x)
    return y + noise_std**2 * score
