"""Noise read off a trained teacher: Normalized Flow Matching."""

from typing import Any

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, normal_like
from nfm.random import generator_for
from nfm.teacher.bijection import Bijection


class TeacherDraws(Coupling):
    r"""z = f(x + eta eps', c) / sigma_f, one of K stored draws of each image.

    References:
        The Coupling Within (Berthelot et al., 2026). https://arxiv.org/abs/2603.09014

    Arguments:
        noise: z of N images, K draws each, an array with shape (N, K, C, H, W); it may be memory-mapped.
    """

    def __init__(self, noise: Any) -> None:
        self.noise = noise

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        draws = self.noise.shape[1]
        device = batch.data.device
        k = torch.randint(draws, (len(batch.index),), generator=generator, device=device)
        stored = self.noise[batch.index.numpy(), k.cpu().numpy()]
        return Pairs(batch.data, torch.from_numpy(stored).to(batch.data), batch.label)


class TeacherOnline(Coupling):
    """As `TeacherDraws`, with fresh noise encoded for every pair.

    Arguments:
        teacher: The bijection f, on the data's device.
        noise_std: eta.
        sigma: sigma_f.
        conditional: Whether the teacher is given the labels.
    """

    def __init__(
        self, teacher: Bijection, noise_std: float, sigma: float, conditional: bool
    ) -> None:
        self.teacher, self.noise_std, self.sigma = teacher, noise_std, sigma
        self.conditional = conditional

    @torch.no_grad()
    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        noisy = batch.data + self.noise_std * normal_like(batch.data, generator)
        z, _ = self.teacher.encode(noisy, batch.label if self.conditional else None)
        return Pairs(batch.data, z / self.sigma, batch.label)


@torch.no_grad()
def encode_draws(
    teacher: Bijection,
    data: Tensor,
    label: Tensor | None,
    *,
    noise_std: float,
    draws: int,
    seed: int,
    first: int = 0,
) -> Tensor:
    """Encodes several noised copies of some images, in float32; sigma_f is not yet divided out.

    A draw depends on the seed and the image's row alone, not on how images are batched.

    Arguments:
        teacher: The bijection f.
        data: Images, with shape (B, C, H, W).
        label: Class labels, with shape (B,), or None.
        noise_std: eta.
        draws: Noised copies of each image, K.
        seed: Seed of the noise.
        first: Row of the first image in the data set.

    Returns:
        f(x + eta eps', c), with shape (B, K, C, H, W).
    """
    eps = torch.stack(
        [
            torch.randn(draws, *data.shape[1:], generator=generator_for(seed, first + i))
            for i in range(len(data))
        ]
    ).to(data)
    noisy = (data[:, None] + noise_std * eps).flatten(0, 1)
    z, _ = teacher.encode(noisy, None if label is None else label.repeat_interleave(draws))
    return z.unflatten(0, (len(data), draws))
