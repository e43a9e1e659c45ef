"""A coupling prepared from its section into a folder, and made from that folder.

The folder holds coupling.json (kind and settings), its card where there is something to measure, and by kind
potentials.safetensors, the drawn noise (noise-00000.f16 and so on, raw float16 of images with K draws each) or a copy
of the teacher.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nfm.artifacts import load_tensors, read_json, save_tensors, write_json
from nfm.build.checks import check_format, check_shape
from nfm.build.draws import CARD, Draws, open_noise
from nfm.build.teacher import load_teacher
from nfm.config import (
    CouplingSection,
    IndependentCoupling,
    InverseRegressionCoupling,
    MinibatchOTCoupling,
    SemidiscreteOTCoupling,
    TeacherCoupling,
)
from nfm.coupling.base import Coupling, Redraw
from nfm.coupling.independent import Independent
from nfm.coupling.inverse import InverseRegression
from nfm.coupling.minibatch_ot import MinibatchOT
from nfm.coupling.semidiscrete_ot import SemidiscreteOT, fit_potentials
from nfm.coupling.teacher import TeacherDraws, TeacherOnline
from nfm.data.shards import Split
from nfm.errors import InputError

FORMAT = "nfm-coupling-3"


def prepare_coupling(
    section: CouplingSection, folder: Path, split: Split, *, draws: Draws | None, seed: int, device: torch.device
) -> dict[str, Any]:
    """Writes a coupling's folder, whole or not at all.

    Arguments:
        section: The coupling's section.
        folder: To be made; one that exists is replaced.
        split: The training images.
        draws: What a teacher's coupling is made of, encoded; None for the others.
        seed: Seed of potentials.
        device: Where to compute.

    Returns:
        What the card says of a coupling from the data alone, for its metrics file.
    """
    settings: dict[str, Any] = {"format": FORMAT, **section.model_dump(mode="json", exclude={"gate"})}
    figures: dict[str, float] = {}
    with _replaced(folder) as partial:
        match section:
            case SemidiscreteOTCoupling():
                figures = _prepare_potentials(section, partial, split, seed, device)
                write_json(partial / "card.json", _card(section, split, figures))
            case TeacherCoupling():
                assert draws is not None
                settings |= draws.fill(partial)
            case InverseRegressionCoupling():
                settings = _copy_pairs(folder.with_name(f"teacher-{seed}"), partial) | settings
            case IndependentCoupling() | MinibatchOTCoupling():
                pass  # their noise is N(0, I) itself
        write_json(partial / "coupling.json", settings)
    return figures


def load_coupling(folder: Path, split: Split, device: torch.device, verify: bool = False) -> Coupling:
    """Makes a coupling from its folder.

    Arguments:
        folder: What `prepare_coupling` wrote.
        split: The training images.
        device: Where pairs are drawn.
        verify: Whether to compare the SHA-256 of stored noise too, and not only its size.

    Raises:
        InputError: A file is missing or corrupt, or was made for other images.
    """
    path = folder / "coupling.json"
    settings = read_json(path)
    check_format(path, settings, FORMAT)
    match settings["kind"]:
        case "inverse-regression":
            return InverseRegression(_load_pairs(folder, settings, split, device, verify))
        case "teacher":
            return _load_pairs(folder, settings, split, device, verify)
        case "independent":
            return Independent()
        case "minibatch-ot":
            return MinibatchOT(settings["across_classes"], settings.get("whole_batch", False))
        case "semidiscrete-ot":
            tensors, _ = load_tensors(folder / "potentials.safetensors")
            data, label = _all(split, device)
            _check_count(folder, len(tensors["potentials"]), split)
            return SemidiscreteOT(
                data, label, tensors["potentials"].to(device), across_classes=settings["across_classes"]
            )
    raise InputError(f"{path} names the kind {settings['kind']!r}, which this version lacks")


def _load_pairs(
    folder: Path, settings: dict[str, Any], split: Split, device: torch.device, verify: bool
) -> TeacherDraws | TeacherOnline:
    redraw = Redraw(**settings["redraw"])
    if settings["draws"] == "online":
        teacher = load_teacher(folder / "teacher.safetensors", device)
        check_shape(folder / "teacher.safetensors", teacher.model.shape, split.shape)
        bf16 = settings.get("precision") == "bf16"
        return TeacherOnline(teacher.model, teacher.noise_std, settings["sigma"], teacher.conditional, redraw, bf16)
    _check_count(folder, settings["images"], split)
    noise = open_noise(folder, settings["shards"], settings["draws"], split.shape, verify)
    return TeacherDraws(noise, settings["sigma"], redraw)


def _copy_pairs(source: Path, folder: Path) -> dict[str, Any]:
    """Puts the noise shards, or the teacher, of a teacher's coupling into another folder; returns its settings."""
    settings = read_json(source / "coupling.json")
    check_format(source / "coupling.json", settings, FORMAT)
    for name in [entry["file"] for entry in settings.get("shards", [])] or ["teacher.safetensors"]:
        shutil.copyfile(source / name, folder / name)
    return settings


def _prepare_potentials(
    section: SemidiscreteOTCoupling, folder: Path, split: Split, seed: int, device: torch.device
) -> dict[str, float]:
    data, label = _all(split, device)
    grouped = None if section.across_classes else label
    fitted = fit_potentials(data, grouped, steps=section.steps, batch=section.batch, lr=section.lr, seed=seed)
    save_tensors(folder / "potentials.safetensors", {"potentials": fitted.potentials}, {})
    return {"marginal_error": fitted.marginal_error, "sampling_error": fitted.sampling_error}


def _card(section: CouplingSection, split: Split, figures: dict[str, float]) -> dict[str, Any]:
    return {"format": CARD, "kind": section.kind, "images": len(split), **figures}


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Gives an empty folder that takes the place of `folder` once the block has ended well."""
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_count(folder: Path, count: int, split: Split) -> None:
    if count != len(split):
        raise InputError(
            f"{folder} was made for {count} images, the data set has {len(split)}; run the stage couple again"
        )


def _all(split: Split, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows = torch.arange(len(split))
    label = split.labels(rows)
    return split.images(rows).to(device), None if label is None else label.to(device)
