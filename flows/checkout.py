"""A folder with a dvc.yaml as the flow sees it: its graph, what is up to date, what is damaged."""

import errno
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from flows.copies import copies, is_intact, md5_there
from flows.leftovers import remove_cut_locks, remove_empty_runs
from nfm.config import nearest
from nfm.errors import InputError


class BusyError(Exception):
    """Another DVC process holds what was needed; to be tried again."""


@dataclass(frozen=True)
class Plan:
    """What a flow run brings up to date.

    Attributes:
        upstream: For every stage, in an order in which they can run, the stages it reads from.
        limits: For every stage the Prefect concurrency limits that it runs under, from
            `meta.limits` in dvc.yaml.
        shared: Commands of the stages whose work can be shared, by stage; from `meta.shares`.
    """

    upstream: dict[str, tuple[str, ...]]
    limits: dict[str, tuple[str, ...]]
    shared: dict[str, str]

    def ancestors(self) -> dict[str, frozenset[str]]:
        """Returns for every stage all stages upstream of it."""
        found: dict[str, frozenset[str]] = {}
        for name, upstream in self.upstream.items():
            found[name] = frozenset(upstream).union(*(found[up] for up in upstream))
        return found

    def urgency(self) -> dict[str, int]:
        """Returns for every stage how many stages the longest chain that waits for it has."""
        longest = dict.fromkeys(self.upstream, 0)
        for name in reversed(self.upstream):
            for up in self.upstream[name]:
                longest[up] = max(longest[up], longest[name] + 1)
        return longest


class Checkout:
    """One DVC project behind one lock, since DVC's Python interface is not safe between threads.

    What DVC said of all stages at once, in `plan`, holds for a stage until one upstream of it has
    run; so a flow run that finds everything up to date asks DVC once.
    """

    def __init__(self, root: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        self.root = root
        self._lock = threading.RLock()
        self._current: set[str] = set()
        self._downstream: dict[str, set[str]] = {}
        try:
            self._repo = Repo(str(root), _wait_for_lock=True)
        except DvcException as error:
            raise InputError(f"{root} is no DVC project ({error}); run from the project's folder") from error

    @property
    def has_remote(self) -> bool:
        """Whether a default remote is configured."""
        return bool(self._repo.config["core"].get("remote"))

    @property
    def s3_endpoint(self) -> str | None:
        """URL of the S3 store that the default remote is in; empty for Amazon's, None without such a remote."""
        remote = self._repo.config["remote"].get(self._repo.config["core"].get("remote"), {})
        return remote.get("endpointurl") or "" if str(remote.get("url")).startswith("s3://") else None

    @property
    def config(self) -> dict[str, Any]:
        """DVC's merged configuration, with relative paths made absolute."""
        return self._repo.config

    @property
    def cache_folder(self) -> Path:
        """Where DVC keeps its cache."""
        folder = self._repo.cache.local_cache_dir
        assert folder is not None
        return Path(folder)

    def plan(self, asked: Sequence[str] = ()) -> Plan:
        """Reads the graph, and which of its stages are up to date.

        Arguments:
            asked: Names of stages, each with or without the "@item" of a matrix; all if empty.

        Raises:
            InputError: There is no stage of a name, or dvc.yaml cannot be read.
        """
        with self._dvc() as repo:
            stages = _stages(repo)
            upstream = {n: _upstream(stage, repo.index.outs_trie) for n, stage in stages.items()}
            order = _in_order(_closure(_matching(asked, stages), upstream), upstream)
            self._current = {name for name in order if _is_clean(stages[name])}
        self._downstream = {name: {other for other in order if name in _closure({other}, upstream)} for name in order}
        return Plan(
            upstream={name: tuple(sorted(upstream[name])) for name in order},
            limits={n: tuple((stages[n].meta or {}).get("limits", ())) for n in order},
            shared={n: stages[n].cmd for n in order if (stages[n].meta or {}).get("shares")},
        )

    @property
    def current(self) -> frozenset[str]:
        """The stages known to be up to date: of those planned, until one upstream of them runs."""
        with self._lock:
            return frozenset(self._current)

    def sources(self) -> list[str]:
        """Returns the files and folders that stages read and no stage makes, relative to the root."""
        from dvc.dependency.param import ParamsDependency

        with self._dvc() as repo:
            outputs = {out.fs_path for out in repo.index.outs}
            deps = [dep for stage in repo.index.stages for dep in stage.deps if dep.is_in_repo]
            paths = {dep.fs_path for dep in deps if not isinstance(dep, ParamsDependency)}
            return sorted(Path(path).relative_to(repo.root_dir).as_posix() for path in paths - outputs)

    def named(self, asked: Sequence[str]) -> frozenset[str]:
        """Returns the stages that names stand for, each with or without the "@item" of a matrix."""
        with self._dvc() as repo:
            return frozenset(_matching(asked, _stages(repo)))

    def placed(self, infra: Mapping[str, str]) -> dict[str, str]:
        """Returns where stages run that do not run here, by stage.

        Arguments:
            infra: Deployments by the name of a stage, with or without the "@item" of a matrix; one
                with goes before one without.

        Raises:
            InputError: There is no stage of a name, or one cannot run elsewhere.
        """
        with self._dvc() as repo:
            stages = _stages(repo)
            # Also stages of a matrix that is empty with these params.
            bases = set(yaml.safe_load((self.root / "dvc.yaml").read_text())["stages"])
        places = {}
        for name in sorted(infra, key=lambda name: "@" in name):
            items = {stage for stage in stages if stage.partition("@")[0] == name}
            places |= dict.fromkeys(items if name in bases else _matching([name], stages, "infra"), infra[name])
        for stage in places:
            if kept := [out.def_path for out in stages[stage].outs if not out.use_cache]:
                raise InputError(
                    f"infra names {stage.partition('@')[0]!r}, whose output {kept[0]} is kept by git and travels by no "
                    "DVC remote; leave it out, so that it runs here"
                )
        return places

    def is_current(self, name: str) -> bool:
        """Returns whether a stage is up to date: code, params, inputs and outputs.

        Raises:
            BusyError: Another process writes what the stage reads or writes.
        """
        with self._lock:
            if name in self._current:
                return True
            with self._dvc() as repo:
                return not _stages(repo)[name].status()

    def forget(self, name: str) -> None:
        """Notes that a stage has run, so that nothing is known of it and what is downstream."""
        with self._lock:
            self._current -= self._downstream.get(name, {name})

    def damaged(self, name: str) -> list[str]:
        """Hashes the files of a stage's outputs, in the folder and in the cache, against dvc.lock.

        DVC itself trusts a file of the cache that is write-protected, and ends with status 0 when
        the disk was full. A file that is not what its hash says is removed, so that the next run
        restores or remakes it.

        Returns:
            The outputs' files that are missing or damaged, relative to the root.
        """
        with self._dvc() as repo:
            found = [copy for out in _stages(repo)[name].outs for copy in copies(out)]
        wrong = set()
        for path, copy, md5 in found:
            if not is_intact(copy, md5):
                copy.unlink(missing_ok=True)
                wrong.add(str(path.relative_to(self._repo.root_dir)))
        return sorted(wrong)

    def clear(self, empty_runs: bool = False) -> None:
        """Removes what a full disk or a kill has left of DVC's own files, on which it would fail.

        Arguments:
            empty_runs: Whether to look through the run-cache too.
        """
        remove_cut_locks(self.root)
        if empty_runs:
            with self._dvc():
                remove_empty_runs(self.cache_folder)

    def spoilt(self, name: str) -> list[str]:
        """Removes from the remote those copies of a stage's outputs that are not what their name says.

        Looks at outputs only that are not in the cache, and reads them without writing them down, so that a
        full or failing disk here is not taken for damage there.

        Returns:
            The files that they are copies of, relative to the root.
        """
        if not self.has_remote:
            return []
        with self._dvc() as repo:
            odb = repo.cloud.get_remote_odb()
            missing = {
                out.cache.path_to_oid(str(copy)): path
                for out in _stages(repo)[name].outs
                for path, copy, md5 in copies(out)
                if copy != path and not is_intact(copy, md5)
            }
            places = {odb.oid_to_path(oid): (oid, path) for oid, path in missing.items()}
            wrong = [place for place, (oid, _) in places.items() if md5_there(odb.fs, place) not in (None, oid)]
            for place in wrong:
                odb.fs.remove(place)
        return sorted(str(places[place][1].relative_to(self._repo.root_dir)) for place in wrong)

    def names_of(self, name: str, md5s: Sequence[str]) -> list[str]:
        """Returns the files of a stage's outputs that have these MD5s by dvc.lock; the MD5 where there is none."""
        with self._dvc() as repo:
            known = _named(repo, name)
        root = self._repo.root_dir
        return [str(known[md5].relative_to(root)) if md5 in known else f"the file with the MD5 {md5}" for md5 in md5s]

    def disown(self, name: str, md5s: Sequence[str]) -> bool:
        """Removes a stage from dvc.lock if one of its outputs there has one of these MD5s; returns whether it did."""
        from dvc.dvcfile import Lockfile

        with self._dvc() as repo:
            if _named(repo, name).keys().isdisjoint(md5s):
                return False
            Lockfile(repo, repo.fs.join(repo.root_dir, "dvc.lock")).remove_stage(_stages(repo)[name])
        return True

    def doubt(self, name: str) -> None:
        """Has the next push send every file of a stage's outputs that the remote lacks.

        DVC takes a folder for whole in the remote when the list of its files is there; so that is removed.
        """
        from dvc_data.hashfile.db import get_index

        with self._dvc() as repo:
            remote = repo.cloud.get_remote_odb()
            lists = [out.hash_info.value for out in _stages(repo)[name].outs if out.hash_info and out.hash_info.isdir]
            for place in map(remote.oid_to_path, lists):
                if remote.fs.exists(place):
                    remote.fs.remove(place)
            get_index(remote).clear()

    @contextmanager
    def _dvc(self) -> Iterator[Any]:
        """Lends the repo to one thread, with the project's own lock held throughout."""
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import lock_repo

        with self._lock:
            remove_cut_locks(self.root)
            try:
                with lock_repo(self._repo):
                    yield self._repo
            except LockError as error:
                raise BusyError(" ".join(str(error).split())) from error
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InputError(
                    f"no space is left on the device for DVC's own files in {self.root}; free some and run again"
                ) from error
            except DvcException as error:
                raise InputError(f"dvc: {' '.join(str(error).split())}") from error


def _stages(repo: Any) -> dict[str, Any]:
    return {_address(stage): stage for stage in repo.index.stages}


def _address(stage: Any) -> str:
    """Returns a stage's name as seen from the root; DVC's own is relative to the working folder."""
    name, file = getattr(stage, "name", None), stage.path_in_repo
    return ":".join(part for part in (file if file != "dvc.yaml" else None, name) if part)


def _is_clean(stage: Any) -> bool:
    """Returns whether a stage is up to date; not known, hence False, while another process has it.

    One loaded stage after the other, since `Repo.status` reads dvc.yaml anew for every target.
    """
    from dvc.lock import LockError

    try:
        return not stage.status()
    except LockError:
        return False


def _upstream(stage: Any, outputs: Any) -> set[str]:
    """Returns the stages that make what a stage reads.

    As in DVC's own graph: an output is read by a dependency that is it, is inside it, or holds it.
    (Asking DVC for the graph object would import networkx, half a second in every run.)
    """
    found = set()
    for dependency in stage.deps:
        key = dependency.fs.parts(dependency.fs_path)
        found |= {prefix.value.stage for prefix in outputs.prefixes(key)}
        if outputs.has_subtrie(key):
            found |= {output.stage for output in outputs.values(prefix=key)}
    return {_address(stage) for stage in found}


def _matching(asked: Sequence[str], known: dict[str, Any], key: str = "stages") -> set[str]:
    """Returns the stages that the asked names stand for, all if there are none."""
    found: set[str] = set()
    for name in asked:
        named = {stage for stage in known if name in (stage, stage.partition("@")[0])}
        if not named:
            bases = {stage.partition("@")[0] for stage in known}
            raise InputError(f"{key} names {name!r}, which dvc.yaml does not have{nearest(name, bases)}")
        found |= named
    return found or set(known)


def _in_order(names: set[str], upstream: dict[str, set[str]]) -> list[str]:
    try:
        return list(TopologicalSorter({n: upstream[n] for n in sorted(names)}).static_order())
    except CycleError as error:
        raise InputError(f"dvc.yaml has a cycle: {' > '.join(error.args[1])}") from error


def _named(repo: Any, name: str) -> dict[str, Path]:
    """Returns the files and folders of a stage's outputs by the MD5 that dvc.lock has of them."""
    outs = _stages(repo)[name].outs
    files = {md5: path for out in outs for path, _, md5 in copies(out)}
    return files | {out.hash_info.value: Path(out.fs_path) for out in outs if out.hash_info}


def _closure(names: set[str], upstream: dict[str, set[str]]) -> set[str]:
    """Returns stages with everything upstream of them."""
    found, waiting = set(names), list(names)
    while waiting:
        new = upstream[waiting.pop()] - found
        found |= new
        waiting += new
    return found
