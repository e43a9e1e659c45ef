"""What a stage reads, by hash: the data sets and couplings that its run names as inputs."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LONGEST = 36  # characters of a digest, by MLflow; DVC's MD5 of a folder with its ".dir" is as long
TRAIN, TEST = "artifacts/data/train", "artifacts/data/test"
READS = {  # stage -> folder -> in what role
    "features": {TRAIN: "training", TEST: "validation"},
    "reference": {TRAIN: "reference", TEST: "reference"},
    "teacher": {TRAIN: "training"},
    "couple": {TRAIN: "training"},
    "couple-teacher": {TRAIN: "training"},
    "student": {TRAIN: "training"},
    "evaluate": {TEST: "evaluation"},
    "evaluate-teacher": {TEST: "evaluation"},
}


@dataclass(frozen=True)
class DataSet:
    """A folder that a stage reads.

    Attributes:
        name: Such as "digits-train" or "coupling-teacher-0".
        digest: DVC's hash of the folder where DVC runs the stage, else a SHA-256 of what it holds, cut to 36 digits.
        role: Training, validation, evaluation, reference or coupling.
        source: Where it is and what its hashes are.
        profile: Counts and shapes.
    """

    name: str
    digest: str
    role: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any]


def read_by(address: str, root: Path) -> list[DataSet]:
    """Returns what a stage reads of the data and of its coupling, as far as it is there.

    Arguments:
        address: The stage's name in dvc.yaml, such as "student@teacher-0".
        root: The project's folder.
    """
    stage, _, item = address.partition("@")
    hashes = locked(root) if "DVC_STAGE" in os.environ else {}
    found = [_split(root, path, role, hashes.get(path)) for path, role in READS.get(stage, {}).items()]
    if stage == "student":
        found.append(_coupling(root, item, hashes.get(f"artifacts/coupling/{item}")))
    return [one for one in found if one is not None]


def settings_of(coupling: str, root: Path) -> dict[str, Any]:
    """Returns the settings of a coupling that evaluations are told apart by, for parallel coordinates.

    A coupling without a teacher adds no noise to the data and draws its noise anew for every batch.

    Arguments:
        coupling: Name of its section in params.yaml.
        root: The project's folder.
    """
    try:
        params = yaml.safe_load((root / "params.yaml").read_text())
        section = params["coupling"][coupling]
        taught = section["kind"] in ("teacher", "inverse-regression")
        pairs = section if "draws" in section else params["coupling"].get("teacher", {})
        draws = pairs.get("draws", "online") if taught else "online"
        return {"noise_std": params["teacher"]["noise_std"] if taught else 0.0, "draws": draws}
    except (OSError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return {}  # a stage by hand in a folder of another layout


def _split(root: Path, path: str, role: str, md5: str | None) -> DataSet | None:
    manifest = root / path / "manifest.json"
    try:
        content, hashed = json.loads(manifest.read_text()), _sha256(manifest.read_bytes())
        name = f"{content['dataset']}-{Path(path).name}"
    except (OSError, ValueError, LookupError, TypeError):
        return None
    profile = {"num_rows": content.get("count"), "shape": content.get("shape"), "classes": len(content["classes"])}
    source = {"uri": path, "dvc.md5": md5, "manifest.sha256": hashed}
    return DataSet(name, (md5 or hashed)[:LONGEST], role, source, profile)


def _coupling(root: Path, item: str, md5: str | None) -> DataSet | None:
    path = f"artifacts/coupling/{item}"
    # The shards of a stored coupling are summed up in its JSON.
    files = {file.name: _sha256(file.read_bytes()) for file in sorted((root / path).glob("*.json"))}
    if not files:
        return None
    source = {"uri": path, "dvc.md5": md5, "sha256": files}
    return DataSet(
        f"coupling-{item}",
        (md5 or _sha256(json.dumps(files).encode()))[:LONGEST],
        "coupling",
        source,
        {"files": len(files)},
    )


def _sha256(content: bytes) -> str:
    # Not nfm.artifacts', which imports torch: a flow run that runs nothing imports this.
    return hashlib.sha256(content).hexdigest()


def locked(root: Path) -> dict[str, str]:
    """Returns DVC's hashes of all outputs in dvc.lock, by path."""
    try:
        stages = (yaml.safe_load((root / "dvc.lock").read_text()) or {}).get("stages") or {}
    except (OSError, yaml.YAMLError):
        return {}  # there is none, or DVC is writing it
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}
