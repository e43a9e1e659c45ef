"""Two runs at once on one checkout: both end well, and neither hears of locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pairs import make_project, run_pair
from infra import dvc_waits


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "project"
    make_project(folder)
    return folder


@pytest.mark.parametrize(("kind", "delay"), [("flow+flow", 0.5), ("flow+dvc", 4.0), ("dvc+flow", 2.0)])
def test_both_of_two_runs_at_once_end_right_and_no_stage_runs_twice(
    project: Path, prefect_server: str, kind: str, delay: float
):
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "NFM_TRACKER": "none"}
    pair = run_pair(project, kind, delay, round(10 * delay), environment, stages=["prepare"])
    assert pair.right, pair.outputs
    assert pair.lock_errors == 0
    assert pair.twice == []


class LockError(Exception):
    pass


class Repro:
    """DVC's command, in whose way somebody is for a while."""

    def __init__(self, *answers: Exception | int) -> None:
        self.answers = list(answers)

    def run(self) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise RuntimeError("failed to reproduce 'data'") from answer
        return answer


def test_a_repro_by_hand_that_finds_the_files_taken_tries_again_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(dvc_waits, "PAUSE", 0.0)
    command = Repro(LockError("is busy"), LockError("is busy"), 3)
    assert dvc_waits.waiting(Repro.run)(command) == 3
    assert capsys.readouterr().out.count("waiting until it is done") == 1
    with pytest.raises(RuntimeError):
        dvc_waits.waiting(Repro.run)(Repro(ValueError("no such stage"), 0))


def test_only_the_one_command_of_dvc_is_touched():
    code = (
        "import sys; before = len(sys.meta_path)\n"
        "from dvc.commands import status, repro\n"
        "print(before - len(sys.meta_path), status.CmdDataStatus.run.__module__, repro.CmdRepro.run.__module__)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1", "dvc.commands.status", "nfm_dvc_waits"]
