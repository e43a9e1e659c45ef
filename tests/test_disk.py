"""A full disk under every stage of this project, and under DVC's cache: one sentence, and nothing lost by it."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from prefect import flow
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.pipeline import run_graph
from nfm.config import read_mapping, with_overrides
from nfm.errors import InputError
from tests.conftest import ROOT, shell
from tests.tiny import TINY

# Each level's stages run at once, after those before.
LEVELS = [
    ["prepare"],
    ["features", "teacher@0"],
    ["reference", "couple-teacher@0"],
    ["student@teacher-0", "evaluate-teacher@0"],
    ["evaluate@teacher-0"],
    ["report"],
]
TIMED = ("artifacts/runs/", "report/run.json", "report/index.html", "report/cost.svg", "report/payback.svg")  # seconds


@flow(name="disk", task_runner=ThreadPoolTaskRunner(max_workers=8))
def run(root: Path, stages: list[str]):
    try:
        return run_graph(root, stages)
    except InputError as error:  # as the flow nfm does
        return Failed(message=str(error))


@dataclass(frozen=True)
class Disk:
    """A small file system."""

    folder: Path

    def fill(self) -> None:
        left = os.statvfs(self.folder)
        with (self.folder / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Disk, Disk]]:
    """Two file systems in memory: for the project, and for DVC's cache."""
    mounted = []
    try:
        for name in ("project", "cache"):
            (tmp_path / name).mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=32m", "nfm-test", str(tmp_path / name)]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                pytest.skip(f"mounting a file system is not allowed here: {answer.stderr.strip()}")
            mounted.append(tmp_path / name)
        yield Disk(mounted[0]), Disk(mounted[1])
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_project(folder: Path, cache: Path) -> None:
    """A checkout of this project with tiny params and one coupling, in which nothing has run."""
    for name in shell(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith(("results/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, "couplings": ["teacher"]})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n")
    shell(["git", "init", "--quiet"], folder)
    shell(["git", "add", "--all"], folder)
    shell(["git", "commit", "--quiet", "--message", "project"], folder)


def outputs(root: Path, stages: list[str]) -> dict[str, str]:
    """The SHA-256 of the files that stages have made, but for those that hold times."""
    with Repo(str(root)) as repo:
        mine: list[Any] = [stage for stage in repo.index.stages if getattr(stage, "name", None) in stages]
        paths = [Path(out.fs_path) for stage in mine for out in stage.outs if not out.metric]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    named = {file.relative_to(root).as_posix(): file for file in files}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in named.items()
        if not name.startswith((*TIMED, "results/"))
    }


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.timeout(900)
def test_a_full_disk_fails_every_stage_in_a_sentence_and_a_run_with_space_ends_as_if_nothing_had_been(
    disks: tuple[Disk, Disk], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NFM_TRACKER", "none")
    project, cache = disks
    root, store = project.folder / "project", cache.folder / "store"
    make_project(root, store)
    for stages in LEVELS:
        cache.fill()
        state = run(root, stages, return_state=True)
        cache.free()
        assert_full(state, stages)
        unfailed = outputs(root, stages)  # the stage itself has ended, and met no full disk
        for name in unfailed:
            (root / name).unlink()

        project.fill()
        state = run(root, stages, return_state=True)
        project.free()
        assert_full(state, stages)

        state = run(root, stages, return_state=True)
        assert state.is_completed(), state.message
        assert f"{len(stages)} run" in state.message
        assert outputs(root, stages) == unfailed
        assert unfailed
        assert not list(root.rglob(".*.tmp"))
    assert "Data and pipelines are up to date" in shell(["dvc", "status"], root)


def assert_full(state: Any, stages: list[str]) -> None:
    """Every stage has failed for want of space, says so, and says nothing else."""
    assert state.is_failed()
    assert "\n" not in state.message
    if state.message.startswith("no space is left on the device for DVC's own files"):
        return  # before any stage could start
    assert f"{len(stages)} failed" in state.message
    for stage in stages:
        assert f"{stage}: " in state.message or f"{stage} has ended well" in state.message
    words = ("no space is left on the device", "are free there; free some", "as after a full disk", "as by a full disk")
    assert sum(state.message.count(each) for each in words) == len(stages), state.message
    assert "Traceback" not in state.message
