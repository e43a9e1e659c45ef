"""What a stage reports to, without MLflow: JSON lines or nothing; and the record it leaves."""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self


class Tracker(Protocol):
    """Where one execution of a stage is written down.

    As a context manager it ends as failed when the block raises, with all that was reported.

    Attributes:
        run_id: The MLflow run, None without MLflow.
    """

    run_id: str | None

    def params(self, mapping: Mapping[str, Any]) -> None:
        """Reports params; nested sections become dotted keys."""

    def tags(self, mapping: Mapping[str, Any]) -> None:
        """Reports tags."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Reports numbers at a step: optimizer updates, or the NFE that they belong to."""

    def image(self, path: Path, name: str) -> None:
        """Keeps a copy of an image, under the same name in every run so that runs compare."""

    def artifact(self, path: Path, name: str) -> None:
        """Keeps a copy of a file under a name, which may have folders."""

    def model(self, path: Path) -> None:
        """Keeps a student, given as its safetensors file, as a model that can be served."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class NullTracker:
    """Writes nothing down."""

    run_id: str | None = None

    def params(self, mapping: Mapping[str, Any]) -> None:
        pass

    def tags(self, mapping: Mapping[str, Any]) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        pass

    def image(self, path: Path, name: str) -> None:
        pass

    def artifact(self, path: Path, name: str) -> None:
        pass

    def model(self, path: Path) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        pass


class JsonLines(NullTracker):
    """Writes `log.jsonl`, one report a line, and copies of files, to a folder of this execution.

    Arguments:
        folder: Where the folders of executions lie.
        address: The stage's name in dvc.yaml.
    """

    def __init__(self, folder: Path, address: str) -> None:
        start = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.folder = folder / f"{address}-{start}-{os.getpid()}"

    def params(self, mapping: Mapping[str, Any]) -> None:
        self._write("params", flatten(mapping))

    def tags(self, mapping: Mapping[str, Any]) -> None:
        self._write("tags", mapping)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        # JSON knows no nan and inf.
        finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._write("metrics", {"step": step, **finite})

    def image(self, path: Path, name: str) -> None:
        self.artifact(path, f"images/{name}")

    def artifact(self, path: Path, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("start", {})
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._write("end", {"status": status_of(error)})

    def _write(self, kind: str, content: Mapping[str, Any]) -> None:
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **content}, default=str)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def record_path(root: Path, address: str) -> Path:
    """Returns where a stage leaves its record; the report's own lies beside it."""
    if address == "report":
        return root / "report" / "run.json"
    return root / "artifacts" / "runs" / f"{address}.json"


def record_of(root: Path, address: str) -> dict[str, Any]:
    """Returns the record that came with a stage's outputs, empty if there is none."""
    try:
        record = json.loads(record_path(root, address).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def status_of(error: BaseException | None) -> str:
    """Returns how a run that ended in this error is marked, as MLflow calls it."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
