"""What is known of how a student was made: its coupling's card, its cost, its features."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfm.config import Params
from nfm.errors import InputError
from nfm.tracker import record_of

TAG = "evidence"  # of a version: this as JSON, so that it is known where the project's folder is not
WORKSPACE = "workspace"  # tag of a version: the folder, relative to the project's, whose stages made it
OF_TEACHER = ("teacher", "inverse-regression")  # kinds of coupling whose pairs a teacher has made


def student_path(folder: Path, coupling: str, seed: int) -> Path:
    """Returns where the student of a coupling and a seed lies."""
    return folder / "artifacts" / "student" / f"{coupling}-{seed}" / "student.safetensors"


def standing(params: Params) -> tuple[str, int]:
    """Returns coupling and seed of the student that stands for a run.

    Raises:
        InputError: The params train no such student.
    """
    section = params.promote
    if section.coupling not in params.couplings:
        raise InputError(
            f"promote.coupling is {section.coupling!r}, expected one of couplings, which are "
            f"{', '.join(params.couplings)}"
        )
    if section.seed not in params.seeds:
        raise InputError(f"promote.seed is {section.seed}, expected one of seeds, which are {list(params.seeds)}")
    return section.coupling, section.seed


def gather(folder: Path, params: Params, coupling: str, seed: int) -> dict[str, Any]:
    """Reads what a project's folder says of a student.

    Arguments:
        folder: The project, its stages up to date.
        params: Its params.
        coupling: The student's.
        seed: The student's.

    Returns:
        "has_card" (whether a teacher has made the pairs), "card" (the gate's verdict), "seconds" (of training the
        teacher, making the coupling, training the student), "accuracy" (of the classifier on held-out images); None
        for what the folder does not say.
    """
    kind = params.coupling[coupling].kind
    has_card = kind in OF_TEACHER
    made = {
        "teacher": [f"teacher@{seed}", f"couple-teacher@{seed}"],
        "inverse-regression": [f"teacher@{seed}", f"couple-teacher@{seed}", f"couple-one-step@{coupling}-{seed}"],
    }.get(kind, [f"couple@{coupling}-{seed}"])
    seconds = [record_of(folder, stage).get("seconds") for stage in (*made, f"student@{coupling}-{seed}")]
    card = _read(folder / "metrics" / "couple" / f"teacher-{seed}.json").get("gate") if has_card else None
    features = _read(folder / "metrics" / "features.json")
    return {
        "has_card": has_card,
        "card": card,
        "seconds": None if None in seconds else sum(filter(None, seconds)),
        "accuracy": features.get("accuracy") if features.get("task") == "class" else None,
    }


def of_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    """Returns the evidence that a version's tags hold, empty if they hold none."""
    try:
        found = json.loads(tags.get(TAG, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
