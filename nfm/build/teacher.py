"""A teacher from its section, and to and from its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nfm.artifacts import load_tensors, save_tensors
from nfm.build.checks import check_format, check_heads, check_labels, check_patch
from nfm.config import Teacher
from nfm.teacher.tarflow import TarFlow

FORMAT = "nfm-teacher-1"


@dataclass(frozen=True)
class TrainedTeacher:
    """A teacher and what it was trained on."""

    model: TarFlow
    noise_std: float  # of the noise on its training images
    conditional: bool


def teacher_arguments(section: Teacher, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Returns TarFlow's constructor arguments, as they are stored beside the weights.

    Arguments:
        section: The `teacher` section.
        shape: Image shape (C, H, W).
        classes: Number of classes of the data set, 0 for none.
    """
    check_patch(section.patch, shape, "teacher.patch")
    check_heads(section.width, section.head_size, "teacher")
    check_labels(section.conditional, classes, "teacher")
    return {
        "shape": list(shape),
        "patch": list(section.patch),
        "blocks": section.blocks,
        "layers": section.layers,
        "width": section.width,
        "head_size": section.head_size,
        "classes": classes if section.conditional else None,
    }


def make_teacher(arguments: dict[str, Any]) -> TarFlow:
    """Builds an untrained teacher."""
    tuples = {key: tuple(arguments[key]) for key in ("shape", "patch")}
    return TarFlow(**{**arguments, **tuples})


def save_teacher(path: Path, model: torch.nn.Module, arguments: dict[str, Any], noise_std: float) -> None:
    """Writes weights and arguments to one safetensors file."""
    header = {"format": FORMAT, "model": arguments, "noise_std": noise_std}
    save_tensors(path, model.state_dict(), header)


def load_teacher(path: Path, device: torch.device) -> TrainedTeacher:
    """Reads a teacher, in evaluation mode and without gradients.

    Raises:
        InputError: The file is missing, corrupt, or not a teacher.
    """
    tensors, header = load_tensors(path)
    check_format(path, header, FORMAT)
    model = make_teacher(header["model"])
    model.load_state_dict(tensors)
    return TrainedTeacher(
        model.to(device).eval().requires_grad_(False),
        header["noise_std"],
        header["model"]["classes"] is not None,
    )
