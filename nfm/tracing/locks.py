"""What DVC has written down of executions of stages: in dvc.lock, at any commit, and in its run-cache."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nfm.tracker import record_path

# The C parser where it is there: a tenth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
COMMITS = 300  # of dvc.lock that are looked through

Read = Callable[[str], bytes | None]  # a file of DVC's cache, or of its remote, by its MD5


@dataclass(frozen=True)
class Entry:
    """One execution of a stage as DVC has written it down.

    Attributes:
        content: As in dvc.lock.
        outs: MD5s of its outputs by path, of folders with ".dir" at the end.
        deps: Likewise of what it read.
    """

    content: Mapping[str, Any]
    outs: Mapping[str, str]
    deps: Mapping[str, str]

    @property
    def stage(self) -> str | None:
        """The stage's name in dvc.yaml, as its record's path tells it; None where it leaves no record."""
        if "report" in self.outs:
            return "report"
        records = [Path(path).stem for path in self.outs if path.startswith("artifacts/runs/")]
        return records[0] if records else None


class Pool:
    """What DVC has written down, each part read once and only when it is come to.

    Arguments:
        root: The project's folder.
        cache: Folder of DVC's cache.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        self._seen: list[Entry] = []
        self._rest = _entries(root, cache)

    def __iter__(self) -> Iterator[Entry]:
        yield from list(self._seen)
        for entry in self._rest:
            self._seen.append(entry)
            yield entry


def _entries(root: Path, cache: Path) -> Iterator[Entry]:
    """Yields what DVC has written down: in the folder's dvc.lock, in its workspaces', in the run-cache, at commits."""
    for lock in (root / "dvc.lock", *sorted(root.glob(".workspaces/*/dvc.lock"))):
        yield from _in_lock(_text(lock))
    for file in sorted(cache.glob("runs/*/*/*")):
        if (content := _parsed(_text(file))) and "outs" in content:
            yield _entry(content)
    log = ["log", "--all", f"--max-count={COMMITS}", "--format=%H", "--", "dvc.lock"]
    for commit in _git(root, *log).split():
        yield from _in_lock(_git(root, "show", f"{commit}:./dvc.lock"))


def entry_of_run(found: Iterable[Entry], stage: str, run_id: str, read: Read, root: Path) -> Entry | None:
    """Returns the execution whose record names an MLflow run; its outputs are that run's, to the bit.

    Arguments:
        found: Where to look.
        stage: The stage's name in dvc.yaml.
        run_id: The run's id.
        read: Gives the content of an output.
        root: The project's folder.
    """
    path = record_path(root, stage).relative_to(root).as_posix()
    for entry in found:
        if entry.stage == stage and (record := _record(entry, path, read)) and record.get("run_id") == run_id:
            return entry
    return None


def upstream_of(wanted: Mapping[str, Entry], found: Iterable[Entry], read: Read) -> dict[str, Entry]:
    """Returns some executions with all whose outputs they have read, to the bit, by stage.

    What several executions have made with the same bytes is taken from the first; sources have no maker.
    """
    chosen, waiting = dict(wanted), list(wanted.values())
    while waiting:
        for path, md5 in waiting.pop().deps.items():
            if not path.startswith("artifacts/"):
                continue
            path = path.removesuffix("/manifest.json")
            maker = next((entry for entry in found if _made(entry, path, md5, read)), None)
            if maker is not None and maker.stage is not None and maker.stage not in chosen:
                chosen[maker.stage] = maker
                waiting.append(maker)
    return chosen


def _made(entry: Entry, path: str, md5: str, read: Read) -> bool:
    made = entry.outs.get(path)
    if made is None or made == md5:
        return made is not None
    # One file out of a folder.
    listed = read(made) if made.endswith(".dir") and not md5.endswith(".dir") else None
    return listed is not None and any(file["md5"] == md5 for file in json.loads(listed))


def files_of(entry: Entry, read: Read) -> dict[str, str] | None:
    """Returns the MD5s of all files among the outputs that DVC keeps, by path; None where a folder's list is gone."""
    files: dict[str, str] = {}
    for path, md5 in entry.outs.items():
        if path.startswith("results/"):  # kept by git
            continue
        if not md5.endswith(".dir"):
            files[path] = md5
            continue
        listed = read(md5)
        if listed is None:
            return None
        files |= {f"{path}/{file['relpath']}": file["md5"] for file in json.loads(listed)}
    return files


def maker_of(file: Path, found: Iterable[Entry], read: Read) -> tuple[Entry, str] | None:
    """Returns the execution that has made a file with these bytes, and under what path; None if none has."""
    with file.open("rb") as content:
        md5 = hashlib.file_digest(content, "md5").hexdigest()
    for entry in found:
        for path, other in (files_of(entry, read) or {}).items():
            if other == md5:
                return entry, path
    return None


def in_cache(cache: Path) -> Read:
    """Returns a reader of DVC's local cache."""

    def read(md5: str) -> bytes | None:
        try:
            return (cache / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()
        except OSError:
            return None

    return read


def record_in(entry: Entry, read: Read, root: Path) -> dict[str, Any]:
    """Returns the record that an execution has left; empty where it is gone."""
    if entry.stage is None:
        return {}
    return _record(entry, record_path(root, entry.stage).relative_to(root).as_posix(), read)


def _record(entry: Entry, path: str, read: Read) -> dict[str, Any]:
    md5 = entry.outs.get(path)
    if md5 is None and entry.stage == "report" and (listed := read(entry.outs["report"])):
        md5 = next((file["md5"] for file in json.loads(listed) if f"report/{file['relpath']}" == path), None)
    content = None if md5 is None else read(md5)
    return json.loads(content) if content else {}


def _in_lock(text: str) -> Iterator[Entry]:
    for content in ((_parsed(text) or {}).get("stages") or {}).values():
        yield _entry(content)


def _entry(content: Mapping[str, Any]) -> Entry:
    outs, deps = (
        {item["path"]: item["md5"] for item in content.get(key) or () if "md5" in item} for key in ("outs", "deps")
    )
    return Entry(content, outs, deps)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        content = LOADER(text).get_single_data()
    except yaml.YAMLError:
        return None  # cut off by a kill, or being written
    return content if isinstance(content, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout if answer.returncode == 0 else ""
