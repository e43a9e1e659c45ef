"""What pydantic cannot see: a section against the data set, a file against what is wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nfm.errors import InputError


def check_format(path: Path, header: dict[str, Any], wanted: str) -> None:
    """Raises InputError unless a file's header names the wanted format."""
    if header.get("format") != wanted:
        raise InputError(
            f"{path} holds {header.get('format')!r}, expected {wanted!r}; "
            "delete it and run the stage that makes it again"
        )


def check_patch(patch: tuple[int, int], shape: tuple[int, int, int], key: str) -> None:
    """Raises InputError unless the patches tile the image."""
    if shape[1] % patch[0] or shape[2] % patch[1]:
        raise InputError(
            f"{key} is {list(patch)}, which does not divide images of "
            f"{shape[1]}x{shape[2]} pixels; choose divisors of height and width"
        )


def check_heads(width: int, head_size: int, section: str) -> None:
    """Raises InputError unless the heads fill the width."""
    if width % head_size:
        raise InputError(f"{section}.head_size is {head_size}, which does not divide {section}.width = {width}")


def check_labels(conditional: bool, classes: int, section: str) -> None:
    """Raises InputError if labels are asked for and the data set has none."""
    if conditional and not classes:
        raise InputError(f"{section}.conditional is true, but the data set has no classes; set it to false")


def check_shape(path: Path, shape: Sequence[int], images: Sequence[int]) -> None:
    """Raises InputError unless a file was made for images of the data set's shape (C, H, W)."""
    if tuple(shape) != tuple(images):
        raise InputError(
            f"{path} was made for images of shape {tuple(shape)}, those of the data set have {tuple(images)}; "
            "run the stage that makes it again, or `dvc repro`"
        )
