"""A frozen autoencoder between pixels and latents: diffusers' AutoencoderKL."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nfm.artifacts import digest, load_tensors, save_tensors, sha256
from nfm.data.shards import from_uint8, to_uint8
from nfm.errors import InputError

FORMAT = "nfm-autoencoder-1"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BATCH = 8  # images at once, whose activations are many times their size


class Autoencoder:
    r"""Pixels x to latents and back, by the mean of the posterior.

    .. math:: u = s\, (\mu(x) - m), \qquad \hat{x} = D(u / s + m)

    The mean and not a draw: so a latent is a function of its image. The spread of the posterior is small
    beside the noise that the teacher and the flow add.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022).
        https://arxiv.org/abs/2112.10752

    Arguments:
        model: An AutoencoderKL.
        scale: s, which brings latents to a standard deviation of about 1.
        shift: m.
        device: Where to compute.
    """

    def __init__(self, model: Any, scale: float, shift: float, device: torch.device) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._scale, self._shift, self._device = scale, shift, device

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self._model.config.latent_channels

    @property
    def colours(self) -> int:
        """Channels of an image."""
        return self._model.config.in_channels

    @property
    def factor(self) -> int:
        """Pixels along the side of what one place of a latent stands for."""
        return 2 ** (len(self._model.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Returns latents as float16 on the CPU, with shape (B, c, h, w), of uint8 pixels (B, C, H, W).

        Raises:
            InputError: A latent is not finite in float16.
        """
        parts = [self._model.encode(from_uint8(part.to(self._device))).latent_dist.mean for part in pixels.split(BATCH)]
        latents = (self._scale * (torch.cat(parts) - self._shift)).half().cpu()
        if not latents.isfinite().all():
            raise InputError(
                f"a latent is not finite in float16 with data.scale {self._scale:g}, expected numbers of the size of "
                "1; take the autoencoder's own scaling_factor"
            )
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Returns uint8 pixels on the CPU, with shape (B, C, H, W), of latents (B, c, h, w).

        Raises:
            InputError: A latent, or what it decodes to, is not finite.
        """
        parts = (latents / self._scale + self._shift).split(BATCH)
        return torch.cat([to_uint8(self._model.decode(part.to(self._device)).sample).cpu() for part in parts])

    def save(self, path: Path) -> None:
        """Writes weights, configuration, scale and shift to one safetensors file."""
        config = {key: value for key, value in self._model.config.items() if not key.startswith("_")}
        header = {"format": FORMAT, "config": config, "scale": self._scale, "shift": self._shift}
        save_tensors(path, self._model.state_dict(), header)


def load_pretrained(folder: Path, key: str, scale: float, shift: float, device: torch.device) -> Autoencoder:
    """Reads an autoencoder as diffusers stores it: config.json and diffusion_pytorch_model.safetensors.

    Arguments:
        folder: Of the two files.
        key: The key of the params that names it, for messages.
        scale: See `Autoencoder`.
        shift: See `Autoencoder`.
        device: Where to compute.

    Raises:
        InputError: A file is missing or damaged, or is of another kind of network; diffusers is not installed.
    """
    _check_files(folder, key)
    try:
        model, found = _diffusers().from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{key} is {folder}, whose weights cannot be read: {_line(error)}; fetch it again") from error
    if missing := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise InputError(
            f"{key} is {folder}, whose weights do not fit its config.json ({len(missing)} differ, such as "
            f"{missing[0]}); fetch both again"
        )
    return Autoencoder(model, scale, shift, device)


def stamp(folder: Path) -> str:
    """Returns a digest of an autoencoder's files, as diffusers stores it."""
    return digest({name: sha256(folder / name) for name in ("config.json", WEIGHTS)})


def load_autoencoder(path: Path, wanted: str, device: torch.device) -> Autoencoder:
    """Reads an autoencoder that `Autoencoder.save` wrote.

    Arguments:
        path: The file.
        wanted: SHA-256 of the one that made the latents.
        device: Where to compute.

    Raises:
        InputError: The file is missing, damaged or another one.
    """
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT or sha256(path) != wanted:
        raise InputError(
            f"{path} is not the autoencoder that made the latents (SHA-256 {wanted[:16]}...); "
            "run the stages prepare and reference again"
        )
    model = _diffusers().from_config(header["config"])
    model.load_state_dict(tensors)
    return Autoencoder(model, header["scale"], header["shift"], device)


def _check_files(folder: Path, key: str) -> None:
    wanted = f"expected a folder with config.json and {WEIGHTS} of diffusers' AutoencoderKL"
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{key} is {folder}, which holds no {name}; {wanted}")
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise InputError(f"{key} is {folder}, whose config.json is damaged: {_line(error)}; fetch it again") from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderKL":
        raise InputError(f"{key} is {folder}, whose config.json is of a {kind}; {wanted}")


def _diffusers() -> Any:
    """Returns diffusers' class, which takes seconds to import and so is imported for latents only."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    except ImportError as error:
        raise InputError(
            "latents need the package diffusers, which is not installed; `pip install diffusers`"
        ) from error
    return AutoencoderKL


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
