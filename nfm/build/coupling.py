"""A coupling prepared from its section into a folder, and made from that folder.

The folder holds coupling.json (kind and settings) and, by kind, potentials.safetensors, the drawn noise (noise.f16, raw
float16 of N images, K draws each) or a copy of the teacher.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nfm.artifacts import load_tensors, read_json, save_tensors, write_json
from nfm.build.checks import check_format, check_shape
from nfm.build.teacher import TrainedTeacher, load_teacher
from nfm.config import (
    CouplingSection,
    IndependentCoupling,
    MinibatchOTCoupling,
    SemidiscreteOTCoupling,
    TeacherCoupling,
)
from nfm.coupling.base import Coupling
from nfm.coupling.diagnostics import diagnose, round_trip_error
from nfm.coupling.independent import Independent
from nfm.coupling.minibatch_ot import MinibatchOT
from nfm.coupling.semidiscrete_ot import SemidiscreteOT, fit_potentials
from nfm.coupling.teacher import TeacherDraws, TeacherOnline, encode_draws
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.random import generator_for

FORMAT = "nfm-coupling-1"
ONLINE_DRAWS = 16  # noised copies of each image that measure a coupling which stores none


def prepare_coupling(
    section: CouplingSection,
    folder: Path,
    split: Split,
    *,
    teacher: Path,
    seed: int,
    batch: int,
    device: torch.device,
) -> dict[str, Any]:
    """Writes a coupling's folder, whole or not at all.

    Arguments:
        section: The coupling's section.
        folder: To be made; one that exists is replaced.
        split: The training images.
        teacher: The teacher's file, read by a teacher's coupling only.
        seed: Seed of potentials or draws.
        batch: Images encoded at once.
        device: Where to compute.

    Returns:
        Figures about the coupling for its metrics file.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        settings: dict[str, Any] = {"format": FORMAT, **section.model_dump(mode="json")}
        match section:
            case IndependentCoupling() | MinibatchOTCoupling():
                figures = {}
            case SemidiscreteOTCoupling():
                figures = _prepare_potentials(section, partial, split, seed, device)
            case TeacherCoupling():
                figures = _prepare_draws(section, partial, split, teacher, seed, batch, device)
                settings |= {"sigma": figures["sigma"], "images": len(split)}
        write_json(partial / "coupling.json", settings)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return figures


def load_coupling(folder: Path, split: Split, device: torch.device) -> Coupling:
    """Makes a coupling from its folder.

    Raises:
        InputError: A file is missing or corrupt, or was made for other images.
    """
    path = folder / "coupling.json"
    settings = read_json(path)
    check_format(path, settings, FORMAT)
    match settings["kind"]:
        case "independent":
            return Independent()
        case "minibatch-ot":
            return MinibatchOT(settings["across_classes"])
        case "semidiscrete-ot":
            tensors, _ = load_tensors(folder / "potentials.safetensors")
            data, label = _all(split, device)
            _check_count(folder, len(tensors["potentials"]), split)
            return SemidiscreteOT(
                data, label, tensors["potentials"].to(device), across_classes=settings["across_classes"]
            )
        case "teacher" if settings["draws"] == "online":
            teacher = load_teacher(folder / "teacher.safetensors", device)
            check_shape(folder / "teacher.safetensors", teacher.model.shape, split.shape)
            return TeacherOnline(teacher.model, teacher.noise_std, settings["sigma"], teacher.conditional)
        case "teacher":
            return TeacherDraws(_open_noise(folder, settings, split), settings["sigma"])
    raise InputError(f"{path} names the kind {settings['kind']!r}, which this version lacks")


def _prepare_potentials(
    section: SemidiscreteOTCoupling, folder: Path, split: Split, seed: int, device: torch.device
) -> dict[str, float]:
    data, label = _all(split, device)
    grouped = None if section.across_classes else label
    fitted = fit_potentials(data, grouped, steps=section.steps, batch=section.batch, lr=section.lr, seed=seed)
    save_tensors(folder / "potentials.safetensors", {"potentials": fitted.potentials}, {})
    return {"marginal_error": fitted.marginal_error, "sampling_error": fitted.sampling_error}


def _prepare_draws(
    section: TeacherCoupling,
    folder: Path,
    split: Split,
    path: Path,
    seed: int,
    batch: int,
    device: torch.device,
) -> dict[str, Any]:
    """Reads noise off the teacher: stores it, or the teacher itself for online draws."""
    teacher = load_teacher(path, device)
    check_shape(path, teacher.model.shape, split.shape)
    online = section.draws == "online"
    draws = ONLINE_DRAWS if section.draws == "online" else section.draws
    shape = (len(split), draws, *split.shape)
    # Online draws need no storage: a scratch file serves sigma and the diagnostics.
    file = folder / ("scratch" if online else "noise.f16")
    noise, total = _allocate(file, shape), 0.0
    for rows in torch.arange(len(split)).split(max(1, batch // draws)):
        z = _encode(teacher, split, rows, draws, seed, device)
        total += z.double().square().sum().item()
        noise[rows[0] : rows[-1] + 1] = z.cpu().numpy()
    noise.flush()
    sigma = (total / noise.size) ** 0.5
    figures = diagnose(noise, sigma, seed=seed) | {
        "sigma": sigma,
        "round_trip": _round_trip(teacher, split, seed, device),
    }
    if online:
        file.unlink()
        shutil.copyfile(path, folder / "teacher.safetensors")
    return figures


def _allocate(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """Maps a new file of float16 whose space is taken at once: a full disk is an error here, not a signal later."""
    with file.open("wb") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, 2 * int(np.prod(shape)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from error
    return np.memmap(file, np.float16, mode="r+", shape=shape)


def _encode(
    teacher: TrainedTeacher, split: Split, rows: torch.Tensor, draws: int, seed: int, device: torch.device
) -> torch.Tensor:
    label = split.labels(rows) if teacher.conditional else None
    return encode_draws(
        teacher.model,
        split.images(rows).to(device),
        None if label is None else label.to(device),
        noise_std=teacher.noise_std,
        draws=draws,
        seed=seed,
        first=int(rows[0]),
    )


def _round_trip(teacher: TrainedTeacher, split: Split, seed: int, device: torch.device) -> float:
    """Measures decode(encode(x)) - x on the first 200 images, which are shuffled, with noise."""
    rows = torch.arange(min(200, len(split)))
    x, label = split.images(rows), split.labels(rows) if teacher.conditional else None
    eps = torch.randn(x.shape, generator=generator_for(seed, 0))
    noisy = (x + teacher.noise_std * eps).to(device)
    return round_trip_error(teacher.model, noisy, None if label is None else label.to(device))


def _open_noise(folder: Path, settings: dict[str, Any], split: Split) -> np.ndarray:
    path = folder / "noise.f16"
    _check_count(folder, settings["images"], split)
    shape = (len(split), settings["draws"], *split.shape)
    wanted = 2 * int(np.prod(shape))
    size = path.stat().st_size if path.is_file() else 0
    if size != wanted:
        raise InputError(
            f"{path} holds {size} bytes, expected {wanted}; delete {folder} and run the stage couple again"
        )
    return np.asarray(np.memmap(path, np.float16, mode="r", shape=shape))


def _check_count(folder: Path, count: int, split: Split) -> None:
    if count != len(split):
        raise InputError(
            f"{folder} was made for {count} images, the data set has {len(split)}; run the stage couple again"
        )


def _all(split: Split, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows = torch.arange(len(split))
    label = split.labels(rows)
    return split.images(rows).to(device), None if label is None else label.to(device)
