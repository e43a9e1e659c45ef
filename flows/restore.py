"""A run's params and artifacts, brought back from DVC to the bit in a workspace of their own."""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from flows.process import environment_here
from flows.workspace import FOLDER, git, worktree
from nfm.errors import InputError
from nfm.registry.history import History, Run, open_history
from nfm.tracing.locks import Entry, Pool, entry_of_run, files_of, in_cache, upstream_of

HERE, THERE, GONE = "here", "remote", "gone"


class Store:
    """DVC's cache and remote of a project, asked for files by their MD5.

    Arguments:
        root: The project's folder.
    """

    def __init__(self, root: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            self._repo = Repo(str(root))
        except DvcException as error:
            raise InputError(f"{root.resolve()} is no DVC project ({error}); run from the project's folder") from error
        folder = self._repo.cache.local_cache_dir
        assert folder is not None
        self.root, self.cache = root, Path(folder)
        self._local = in_cache(self.cache)
        self.pool = Pool(root, self.cache)

    @property
    def has_remote(self) -> bool:
        """Whether a default remote is configured."""
        return bool(self._repo.config["core"].get("remote"))

    @cached_property
    def _remote(self) -> Any:
        return self._repo.cloud.get_remote_odb() if self.has_remote else None

    def read(self, md5: str) -> bytes | None:
        """Returns a file of the cache, else of the remote; None where neither has it."""
        if (content := self._local(md5)) is not None or self._remote is None:
            return content
        with _reaching(self.root):
            place = self._remote.oid_to_path(md5)
            return self._remote.fs.cat_file(place) if self._remote.fs.exists(place) else None

    def where(self, md5s: set[str]) -> dict[str, str]:
        """Returns of each file whether it is in the cache (and what it should be), in the remote, or gone."""
        found = {md5: HERE for md5 in md5s if self._is_intact(md5)}
        rest = sorted(md5s - set(found))
        if rest and self._remote is not None:
            with _reaching(self.root):
                found |= dict.fromkeys(self._remote.oids_exist(rest), THERE)
        return {md5: found.get(md5, GONE) for md5 in md5s}

    def fetch_runs(self) -> None:
        """Brings the remote's run-cache here: a list of what has run, small."""
        if self.has_remote:
            with _reaching(self.root):
                self._repo.stage_cache.pull(None)
            self.pool = Pool(self.root, self.cache)

    def _is_intact(self, md5: str) -> bool:
        path = self.cache / "files" / "md5" / md5[:2] / md5[2:]
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "md5").hexdigest() == md5.removesuffix(".dir")
        except OSError:
            return False


@dataclass(frozen=True)
class Restored:
    """What DVC can bring back of a run.

    Attributes:
        run: The run.
        entries: By stage, the run's own and those upstream of it.
        files: MD5 of every file, by path.
        where: Where each MD5 is.
    """

    run: Run
    entries: Mapping[str, Entry]
    files: Mapping[str, str]
    where: Mapping[str, str]

    @property
    def state(self) -> str:
        """In words."""
        counts = [sum(self.where[md5] == place for md5 in self.files.values()) for place in (HERE, THERE, GONE)]
        here, there, gone = counts
        if gone:
            first = next(path for path, md5 in self.files.items() if self.where[md5] == GONE)
            return (
                f"gone: {first}" + (f" and {gone - 1} more files" if gone > 1 else "") + f" of {len(self.files)} files"
            )
        places = [f"{here} files in the cache"] * bool(here) + [f"{there} in the remote"] * bool(there)
        return f"restorable: {', '.join(places)}"


def look(history: History, run: Run, store: Store, *, upstream: bool) -> Restored:
    """Finds what DVC has of a run's outputs.

    Arguments:
        history: Where the run is.
        run: Of a stage, or of a flow run.
        store: DVC's cache and remote.
        upstream: Whether to follow what it has read, too.

    Raises:
        InputError: DVC has written nothing down of the run, or the remote does not answer.
    """
    wanted = {run.address: run.id} if run.address else run.made_by
    if not wanted:
        raise InputError(
            f"MLflow run {run.id} ({run.name}) names no stage, and no runs that made the outputs of stages"
        )
    found = {stage: _entry(store, stage, run_id) for stage, run_id in wanted.items()}
    if None in found.values():
        store.fetch_runs()
        found = {stage: entry or _entry(store, stage, wanted[stage]) for stage, entry in found.items()}
    entries = {stage: entry for stage, entry in found.items() if entry is not None}
    for stage in wanted:
        if stage not in entries:
            raise InputError(
                f"the artifacts of MLflow run {wanted[stage]} ({stage}) are gone: no dvc.lock of this project and no "
                "run-cache, here or in the remote, has the record of that run; it ran in another clone that has not "
                "pushed (`dvc push --run-cache` there), its outputs were never kept, or they were removed by `dvc gc`"
            )
    if upstream:
        entries = upstream_of(entries, store.pool, store.read)
    files: dict[str, str] = {}
    for stage, entry in entries.items():
        listed = files_of(entry, store.read)
        if listed is None:
            raise InputError(f"the artifacts of {stage} are gone: a folder's list is neither in DVC's cache nor remote")
        files |= listed
    return Restored(run, entries, files, store.where(set(files.values())))


def restore(word: str, root: Path) -> tuple[Path, Restored]:
    """Makes a workspace with a run's commit, params and artifacts; nothing outside of it changes.

    Arguments:
        word: Id or name of an MLflow run, or id of a Prefect flow run.
        root: The project's folder.

    Raises:
        InputError: The run, its commit or an artifact is not to be had; then there is no workspace.
    """
    history, store = open_history(root), Store(root)
    run = history.find(word) or next(iter(history.tagged(prefect__flow_run_id=word)), None)
    if run is None:
        raise InputError(f"{word!r} is no run that MLflow at {history.uri} knows; `python -m nfm trace` finds runs")
    found = look(history, run, store, upstream=True)
    if GONE in found.where.values():
        raise InputError(
            f"the artifacts of MLflow run {run.id} ({run.name}) are {found.state}: not in DVC's cache or remote"
        )
    commit = _commit(history, run, root)
    params = _params(history, run, found.entries, git(root, "show", f"{commit}:./params.yaml"))
    with worktree(root, root / FOLDER / f"restored-{run.id[:12]}", commit) as folder:
        (folder / "params.yaml").write_text(params, encoding="utf-8")
        lock = {"schema": "2.0", "stages": {stage: dict(entry.content) for stage, entry in found.entries.items()}}
        (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
        _bring(folder, list(found.entries), pull=THERE in found.where.values())
        if report := found.entries.get("report"):
            _bring_results(history, run, report, folder)
        _hold(folder, found.files)
    return folder, found


def check(run_ids: Sequence[str], root: Path) -> dict[str, str]:
    """Returns of each run whether its artifacts can be restored, in words."""
    history, store, states = open_history(root), Store(root), {}
    for run_id in run_ids:
        try:
            run = history.get(run_id)
            states[run_id] = "gone: unknown run" if run is None else look(history, run, store, upstream=False).state
        except InputError as error:
            states[run_id] = str(error)
    return states


def _entry(store: Store, stage: str, run_id: str) -> Entry | None:
    return entry_of_run(store.pool, stage, run_id, store.read, store.root)


def _commit(history: History, run: Run, root: Path) -> str:
    """Returns the run's commit, of a flow run without one that of a run which made its outputs."""
    made = (history.get(run_id) for run_id in reversed(run.made_by.values()))
    commits = [one.tags["git.commit"] for one in (run, *made) if one and one.tags.get("git.commit", "none") != "none"]
    commit = commits[0] if commits else "none"
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except InputError as error:
        raise InputError(
            f"MLflow run {run.id} ({run.name}) ran at commit {commit}, which is not in {root.resolve()}; `git fetch` "
            "it, or go to the clone of the project that the run is of"
        ) from error
    return commit


def _params(history: History, run: Run, entries: Mapping[str, Entry], committed: str) -> str:
    """Returns params.yaml as the run had it: its artifact, in runs of before there was one that of the commit."""
    holder = run if run.address else next(filter(None, map(history.get, reversed(run.made_by.values()))), run)
    text = history.text(holder, "params.yaml") if history.has(holder, "params.yaml") else committed
    params = yaml.safe_load(text)
    for stage, entry in entries.items():
        for key, value in (entry.content.get("params") or {}).get("params.yaml", {}).items():
            if _at(params, key) != value:
                raise InputError(
                    f"params.yaml of MLflow run {holder.id} has {key} {_at(params, key)!r}, but {stage} was made with "
                    f"{value!r}: another run made it, restore that one"
                )
    return text


def _at(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


def _bring(folder: Path, stages: Sequence[str], *, pull: bool) -> None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "pull" if pull else "checkout", "--force", *stages]
    answer = subprocess.run(command, cwd=folder, env=environment_here(), capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        from flows.words import errors, short  # which imports prefect

        lines = [*answer.stdout.splitlines(), *answer.stderr.splitlines()]
        said = short(errors(lines)) or f"exit status {answer.returncode}"
        raise InputError(f"DVC could not bring the artifacts back: {said}")


def _bring_results(history: History, run: Run, report: Entry, folder: Path) -> None:
    """Brings back the report's results, which git keeps and not DVC, from the artifacts of the run that made them."""
    holder = run if run.address else history.made_by(run, "report")
    for path, md5 in report.outs.items():
        if not path.startswith("results/"):
            continue
        target, name = folder / path, Path(path).name
        if holder is None or not history.has(holder, name):  # a run of before they were artifacts
            target.unlink(missing_ok=True)
            continue
        target.parent.mkdir(exist_ok=True)
        target.write_text(history.text(holder, name), encoding="utf-8")
        _hold(folder, {path: md5})


def _hold(folder: Path, files: Mapping[str, str]) -> None:
    """Holds every restored file against its MD5."""
    for path, md5 in files.items():
        try:
            with (folder / path).open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        except OSError:
            found = "none"
        if found != md5:
            raise InputError(
                f"{path} came back with MD5 {found}, expected {md5}; DVC's cache is damaged, see `dvc fetch`"
            )


@contextmanager
def _reaching(root: Path) -> Iterator[None]:
    """Turns a remote that does not answer into a sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the DVC remote of {root.resolve()} does not answer ({reason}); see `dvc remote list`, and its credentials"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Restores a run from the command line.

    Returns:
        0 when all is restored, 2 when something is not to be had.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.restore", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="id or name of an MLflow run, or id of a flow run")
    parser.add_argument("--check", action="store_true", help="only say as JSON whether they can be restored")
    given = parser.parse_args(arguments)
    try:
        if given.check:
            print(json.dumps(check(given.runs, Path.cwd())))
            return 0
        for word in given.runs:
            folder, found = restore(word, Path.cwd())
            stages = f"{len(found.entries)} stage{'s' * (len(found.entries) > 1)}"
            print(f"{folder}: {len(found.files)} files of {stages}, bit-equal, and params.yaml of run {found.run.id}")
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
