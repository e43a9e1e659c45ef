"""What a retraining has seen: imported data brought up to date, and the mark that the last one left."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.process import environment_here
from nfm.errors import InputError

MARK = ".retrained.json"
# Sections that say how and where stages run: another machine is no reason to retrain.
ASIDE = ("run", "infra", "cost")


@dataclass(frozen=True)
class Seen:
    """What a retraining that has ended was about.

    Attributes:
        data: Digest of the listing of the data.
        params: Digest of the params, without what decides no result.
        folder: Where its stages ran, relative to the project.
        time: When it ended.
        decision: What came of it.
    """

    data: str
    params: str
    folder: str
    time: str = ""
    decision: str = ""

    def same(self, other: "Seen | None") -> bool:
        """Whether another one was about the same."""
        return other is not None and (self.data, self.params) == (other.data, other.params)


def last_seen(root: Path) -> Seen | None:
    """Returns the mark of the last retraining that ended; None without one that can be read."""
    try:
        return Seen(**json.loads((root / MARK).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def leave_mark(root: Path, seen: Seen) -> None:
    """Writes the mark, whole or not at all; the last thing that a retraining does."""
    temporary = root / f"{MARK}.{os.getpid()}"
    try:
        with temporary.open("w") as file:
            json.dump(asdict(seen), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(root / MARK)
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(params: Mapping[str, Any]) -> str:
    """Returns a digest of the params that decide results, or what becomes of them."""
    content = {key: value for key, value in params.items() if key not in ASIDE}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def update_imports(root: Path, places: Mapping[str, str]) -> list[str]:
    """Runs `dvc update` for those places that `dvc import` or `dvc import-url` has brought.

    Arguments:
        root: The project's folder.
        places: Folders relative to it, or s3:// prefixes, by their key in the params.

    Returns:
        The .dvc files that were updated, whether anything came or not.

    Raises:
        InputError: A source does not answer.
    """
    files = [f"{place.rstrip('/')}.dvc" for place in places.values() if not place.startswith("s3://")]
    imported = [file for file in files if _is_import(root / file)]
    for file in imported:
        command = [sys.executable, "-m", "dvc", "update", file]
        answer = subprocess.run(command, cwd=root, env=environment_here(), capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            said = [line.removeprefix("ERROR: ") for line in answer.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = " ".join((said or ["dvc update failed"])[0].split())
            raise InputError(f"{file} cannot be updated: {reason}; mend its source, or run `dvc update {file}` by hand")
    return imported


def _is_import(path: Path) -> bool:
    """Whether a .dvc file names a source outside, which `dvc update` looks at."""
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError):
        return False
    return bool(content.get("frozen") and content.get("deps"))
