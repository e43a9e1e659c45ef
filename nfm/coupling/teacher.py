"""Noise read off a trained teacher: Normalized Flow Matching."""

import torch
from torch import Tensor

from nfm.coupling.base import Batch, Coupling, Pairs, Redraw, normal_like
from nfm.random import generator_for
from nfm.store import Rows
from nfm.teacher.bijection import Bijection

# Negative, so that no step, row or sample has the same stream of noise for the same seed.
_STREAM = -1
NO_REDRAW = Redraw()


class TeacherDraws(Coupling):
    r"""z = f(x + eta eps', c) / sigma_f, one of K stored draws of each image.

    References:
        The Coupling Within (Berthelot et al., 2026). https://arxiv.org/abs/2603.09014

    Arguments:
        noise: f(x + eta eps', c) of N images, K draws each, with shape (N, K, C, H, W), in float16
            or float32.
        sigma: sigma_f; 1 for noise that it is already divided out of.
        redraw: Pairs whose noise is drawn anew; see `nfm.coupling.base.Coupling`.
    """

    def __init__(self, noise: Rows, sigma: float = 1.0, redraw: Redraw = NO_REDRAW) -> None:
        if len(noise.shape) != 5 or not noise.shape[1]:
            raise ValueError(f"noise has shape {noise.shape}, expected (N, K, C, H, W) with K at least 1")
        self._noise, self._sigma, self.redraw = noise, sigma, redraw

    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        device = batch.data.device
        draws = (self._noise.shape[1], (len(batch.index),))
        k = torch.randint(*draws, generator=generator, device=device)
        index = batch.index.cpu().numpy(), k.cpu().numpy()
        self._noise.expect(*index)
        stored = self._noise.take(*index)
        if stored.shape != batch.data.shape:
            raise ValueError(
                f"stored noise has shape {stored.shape[1:]}, expected that of an image, {tuple(batch.data.shape[1:])}"
            )
        noise = torch.from_numpy(stored).to(batch.data) / self._sigma
        return Pairs(batch.data, noise, batch.label)


class TeacherOnline(Coupling):
    """As `TeacherDraws`, with fresh noise encoded for every pair.

    Arguments:
        teacher: The bijection f, on the data's device.
        noise_std: eta.
        sigma: sigma_f.
        conditional: Whether the teacher is given the labels.
        redraw: Pairs whose noise is drawn anew; see `nfm.coupling.base.Coupling`.
        bf16: Whether the teacher's matrix products are in bfloat16.
    """

    def __init__(
        self,
        teacher: Bijection,
        noise_std: float,
        sigma: float,
        conditional: bool = True,
        redraw: Redraw = NO_REDRAW,
        bf16: bool = False,
    ) -> None:
        self._teacher, self._noise_std, self._sigma = teacher, noise_std, sigma
        self._conditional, self.redraw, self._bf16 = conditional, redraw, bf16

    @torch.no_grad()
    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        noisy = batch.data + self._noise_std * normal_like(batch.data, generator)
        z = encode(self._teacher, noisy, batch.label if self._conditional else None, self._bf16)
        return Pairs(batch.data, z / self._sigma, batch.label)


def encode(teacher: Bijection, x: Tensor, label: Tensor | None, bf16: bool) -> Tensor:
    """Encodes images in a precision of its own, whatever that of a training around it.

    Arguments:
        teacher: The bijection f.
        x: Noised images, with shape (B, *event).
        label: Class labels, with shape (B,), or None.
        bf16: Whether matrix products are in bfloat16; scales, shifts and what they change are not.

    Returns:
        f(x, c), with the shape and dtype of x.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return teacher.encode(x, label)[0]


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
    bf16: bool = False,
) -> Tensor:
    """Encodes noised copies of some images; sigma_f is not yet divided out.

    Draw k of an image depends on the seed, on k and on the image's row alone, not on how images
    are batched.

    Arguments:
        teacher: The bijection f.
        data: Images, with shape (B, C, H, W), on the teacher's device.
        label: Class labels, with shape (B,), or None.
        noise_std: eta.
        draws: Noised copies of each image, K.
        seed: Seed of the noise.
        first: Row of the first image in the data set.
        bf16: Whether the teacher's matrix products are in bfloat16.

    Returns:
        f(x + eta eps', c), with shape (B, K, C, H, W), in the data's dtype.
    """
    shape, rows = (draws, *data.shape[1:]), range(first, first + len(data))
    eps = torch.stack([torch.randn(shape, generator=generator_for(seed, _STREAM, i)) for i in rows])
    noisy = (data[:, None] + noise_std * eps.to(data)).flatten(0, 1)
    z = encode(teacher, noisy, None if label is None else label.repeat_interleave(draws), bf16)
    return z.unflatten(0, (len(data), draws))
