"""Two runs at once on one checkout: both end well, and neither hears of locks."""

import os
from pathlib import Path

import pytest

from benchmarks.pairs import make_project, run_pair
from flows.repro import main


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "project"
    make_project(folder)
    return folder


@pytest.mark.parametrize(("kind", "delay"), [("flow+flow", 0.5), ("flow+repro", 4.0)])
def test_both_of_two_runs_at_once_end_right_and_no_stage_runs_twice(
    project: Path, prefect_server: str, kind: str, delay: float
):
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "NFM_TRACKER": "none"}
    pair = run_pair(project, kind, delay, round(10 * delay), environment, stages=["prepare"])
    assert pair.right, pair.outputs
    assert pair.lock_errors == 0
    assert pair.twice == []


def test_a_repro_by_hand_that_finds_the_files_taken_tries_again_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "dvc.py").write_text(
        "import pathlib, sys\n"
        "count = pathlib.Path('count')\n"
        "n = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(n + 1))\n"
        "assert sys.argv[1:] == ['--wait-for-lock', 'repro', 'data']\n"
        "if n < 2: print(\"ERROR: 'data.txt' is busy, it is being blocked by:\\n  (PID 1): dvc\"); sys.exit(255)\n"
        "print('Running stage')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.repro.PAUSE", 0.0)
    assert main(["data"]) == 0
    assert (tmp_path / "count").read_text() == "3"
    out = capsys.readouterr().out
    assert out.count("goes on when they are free") == 1
    assert "busy" not in out
    assert "PID" not in out
    assert out.endswith("Running stage\n")
