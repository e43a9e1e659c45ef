"""What a round has left, held against a run that nobody killed: what is lost, what is stale, what was trained twice."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nfm.tracker import record_of

# What a run says of itself, and not of its results.
OWN = ("seconds", "seconds_per_image", "peak_memory_mb", "peak_gpu_memory_mb", "joules", "cost", "run_id")
# Files that draw or list those figures.
TIMED = ("report/index.html", "report/cost.svg", "report/payback.svg", "results/seconds.csv")


def fingerprints(root: Path) -> dict[str, str]:
    """Returns the hash of every output by path: of the bytes, in JSON without what a run says of itself."""
    places = [root / out["path"] for stage in _stages(root).values() for out in stage.get("outs", ())]
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): _hash(path) for path in files}


def is_compared(path: str) -> bool:
    """Whether an output has to be the same in every run."""
    return path not in TIMED


def compare(found: Mapping[str, str], wanted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Returns the outputs that are lost, and those that are stale: there, with another content."""
    lost = [path for path in wanted if path not in found]
    stale = [path for path in wanted if path in found and is_compared(path) and found[path] != wanted[path]]
    return lost, stale


def recorded(root: Path) -> dict[str, str | None]:
    """Returns the stages of dvc.lock that have to leave a record, and the key in it."""
    return {name: record_of(root, name).get("key") for name in _stages(root) if name != "report"}


def unrecorded(root: Path, wanted: Iterable[str]) -> list[str]:
    """Returns the stages that dvc.lock does not have, or whose record is not there."""
    present = recorded(root)
    return [name for name in wanted if not present.get(name)]


def sent(root: Path) -> dict[str, int]:
    """Returns the sizes of the objects that the remote has to hold, by the MD5 that names them."""
    found: dict[str, int] = {}
    for out in (out for stage in _stages(root).values() for out in stage.get("outs", ())):
        if out["path"].startswith("results/"):
            continue  # git's
        cached = root / ".dvc" / "cache" / "files" / "md5" / out["md5"][:2] / out["md5"][2:]
        found[out["md5"]] = cached.stat().st_size
        if out["md5"].endswith(".dir"):
            for entry in json.loads(cached.read_text()):
                found[entry["md5"]] = (root / out["path"] / entry["relpath"]).stat().st_size
    return found


def unsent(wanted: Mapping[str, int], remote: Mapping[str, int]) -> list[str]:
    """Returns the objects that are not in the remote, or with another size."""
    return [name for name, size in wanted.items() if remote.get(name) != size]


@dataclass(frozen=True)
class Execution:
    """One execution of a stage, as its own log tells it.

    Attributes:
        stage: Its name in dvc.yaml.
        began: Seconds since 1970.
        ended: Time of its last word.
        steps: Updates that it has reported, in order.
        status: How it said that it ended; None where it was killed.
    """

    stage: str
    began: float
    ended: float
    steps: tuple[int, ...] = ()
    status: str | None = None


@dataclass(frozen=True)
class Repeat:
    """Updates done again that had been saved.

    Attributes:
        stage: Its name in dvc.yaml.
        updates: How many.
        began: When the execution began that repeats them, seconds since 1970.
    """

    stage: str
    updates: int
    began: float


def executions(logs: Path) -> list[Execution]:
    """Reads the logs of a round, the oldest execution first."""
    found = [_execution(path) for path in logs.glob("*/log.jsonl")]
    return sorted((each for each in found if each), key=lambda each: each.began)


def repeats(history: Sequence[Execution], checkpoint: int, report: int) -> list[Repeat]:
    """Returns the updates that executions have done although an earlier one had saved them.

    An update past a checkpoint tells that the checkpoint was written, for the loop saves before it goes on. What was
    done after the last checkpoint is lost by a kill, and is no repeat.

    Arguments:
        history: Executions in the order in which they began.
        checkpoint: Updates between checkpoints.
        report: Updates between reports; a checkpoint's is one of them.
    """
    saved: dict[str, int] = {}
    found = []
    for each in history:
        before = saved.get(each.stage, 0)
        if each.steps and (twice := before - (each.steps[0] - report)) > 0:
            found.append(Repeat(each.stage, min(twice, each.steps[-1] - each.steps[0] + report), each.began))
        if each.steps:
            saved[each.stage] = max(before, _saved(each, checkpoint))
    return found


def redone(history: Sequence[Execution], report: int) -> int:
    """Returns how many updates were done more than once, as those after the last checkpoint have to be."""
    done: dict[str, int] = {}
    total = 0
    for each in history:
        if each.steps:
            before = done.get(each.stage, 0)
            total += max(0, min(before, each.steps[-1]) - (each.steps[0] - report))
            done[each.stage] = max(before, each.steps[-1])
    return total


def _saved(each: Execution, checkpoint: int) -> int:
    """Returns the last update that an execution has certainly saved."""
    last = each.steps[-1]
    if each.status == "FINISHED":
        return last
    if each.status == "KILLED":
        return last  # it was asked to end, and saved what it had
    return (last - 1) // checkpoint * checkpoint


def _stages(root: Path) -> dict[str, Any]:
    path = root / "dvc.lock"
    return yaml.safe_load(path.read_text())["stages"] if path.is_file() else {}


def _execution(path: Path) -> Execution | None:
    lines = [line for line in map(_parsed, path.read_text().splitlines()) if line]
    if not lines:
        return None
    tags: dict[str, Any] = next((line for line in lines if line["kind"] == "tags"), {})
    steps = tuple(line["step"] for line in lines if line["kind"] == "metrics" and "grad_norm" in line)
    status = next((line["status"] for line in lines if line["kind"] == "end"), None)
    stage = tags.get("dvc.stage") or path.parent.name.rsplit("-", 2)[0]
    return Execution(stage, lines[0]["time"], lines[-1]["time"], steps, status)


def _parsed(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        return {}  # the line at which it was killed


def _hash(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(_without_own(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _without_own(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_own(value) for key, value in content.items() if key not in OWN}
    return [_without_own(each) for each in content] if isinstance(content, list) else content


@dataclass
class Verdict:
    """What was found wrong after a round; empty lists are good.

    Attributes:
        lost: Outputs, records and objects of the remote that are missing.
        stale: Outputs that are others than those of a run that nobody killed.
        repeats: What was trained twice.
        redone: Updates after the last checkpoint, done again.
        told: Trainings that SIGTERM has ended, and that saved what they had.
    """

    lost: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    redone: int = 0
    told: int = 0
