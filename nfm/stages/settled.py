"""Checkpoints of finished stages, which stay until DVC has written the outputs down.

DVC hashes and copies outputs after their stage has ended, and runs the stage again if it is killed meanwhile. With the
checkpoint still there that is a matter of seconds, without it a whole training.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from nfm.tracker import record_of, record_path


def is_dvcs() -> bool:
    """Returns whether DVC runs this stage, and so will take over its outputs."""
    return "DVC_STAGE" in os.environ


def discard_settled(root: Path) -> None:
    """Removes the checkpoints whose stages dvc.lock has, with the outputs that are there.

    Arguments:
        root: The project's folder.
    """
    stages = _locked(root / "dvc.lock")
    for folder in (root / ".checkpoints").glob("*-*"):
        address, _, key = folder.name.rpartition("-")
        record = record_path(root, address)
        if str(record_of(root, address).get("key", ""))[:16] == key and _is_locked(record, root, stages.get(address)):
            shutil.rmtree(folder, ignore_errors=True)  # another stage may be at it


def _is_locked(record: Path, root: Path, stage: Any) -> bool:
    path = record.relative_to(root).as_posix()
    locked = [out.get("md5") for out in (stage or {}).get("outs", ()) if out.get("path") == path]
    try:
        return locked == [hashlib.md5(record.read_bytes(), usedforsecurity=False).hexdigest()]
    except OSError:
        return False


def _locked(path: Path) -> dict[str, Any]:
    try:
        return (yaml.safe_load(path.read_text()) or {}).get("stages") or {}
    except (OSError, yaml.YAMLError):
        return {}  # there is none, or DVC is writing it
