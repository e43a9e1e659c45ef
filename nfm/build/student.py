"""A student from its section, and to and from its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nfm.artifacts import load_tensors, save_tensors
from nfm.build.checks import check_format, check_heads, check_labels, check_patch
from nfm.config import Student
from nfm.student.velocity import SiT

FORMAT = "nfm-student-2"


def student_arguments(section: Student, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Returns SiT's constructor arguments, as they are stored beside the weights.

    Arguments:
        section: The `student` section.
        shape: Image shape (C, H, W).
        classes: Number of classes of the data set, 0 for none.
    """
    check_patch(section.patch, shape, "student.patch")
    check_heads(section.width, section.head_size, "student")
    check_labels(section.conditional, classes, "student")
    return {
        "shape": list(shape),
        "patch": list(section.patch),
        "depth": section.depth,
        "width": section.width,
        "head_size": section.head_size,
        "classes": classes if section.conditional else None,
    }


def make_student(arguments: dict[str, Any]) -> SiT:
    """Builds an untrained student."""
    tuples = {key: tuple(arguments[key]) for key in ("shape", "patch")}
    return SiT(**{**arguments, **tuples})


def save_student(path: Path, model: torch.nn.Module, arguments: dict[str, Any], one_step: bool = False) -> None:
    """Writes weights, arguments and whether it takes a single step to one safetensors file."""
    save_tensors(path, model.state_dict(), {"format": FORMAT, "model": arguments, "one_step": one_step})


@dataclass(frozen=True)
class TrainedStudent:
    """A student.

    Attributes:
        model: In evaluation mode and without gradients.
        one_step: Whether it has learnt a single step from t = 1 to 0, and no flow.
    """

    model: SiT
    one_step: bool


def load_student(path: Path, device: torch.device) -> TrainedStudent:
    """Reads a student.

    Raises:
        InputError: The file is missing, corrupt, or not a student.
    """
    tensors, header = load_tensors(path)
    check_format(path, header, FORMAT)
    model = make_student(header["model"])
    model.load_state_dict(tensors)
    return TrainedStudent(model.to(device).eval().requires_grad_(False), header["one_step"])
