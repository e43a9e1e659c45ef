"""What a deployment's run finds on its worker: packages that are not the lock's, and a folder at another commit."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_sync

import nfm.pins
from flows.pipeline import pipeline
from flows.stages import single_stages
from tests.conftest import shell
from tests.deployed import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "project"
    make_project(folder)
    return folder


def deployed_run(flow: Any, commit: str, **parameters: Any) -> Any:
    """Runs a flow as a worker does for a deployment of a commit; returns its state."""
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(flow), name=commit[:8], version=commit)
        flow_run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    return run_flow_sync(flow, flow_run=flow_run, parameters=parameters, return_type="state")


@pytest.mark.usefixtures("prefect_server")
def test_a_worker_with_other_packages_refuses_in_one_sentence(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    commit = head(project)
    real = nfm.pins.version
    monkeypatch.setattr(nfm.pins, "version", lambda name: "0.0.1" if name == "torch" else real(name))
    for flow in (pipeline, single_stages):
        state = deployed_run(flow, commit, stages=["prepare"])
        assert state.name == "Refused"
        assert state.message.startswith(f"the worker has torch 0.0.1 installed, but requirements.lock in {project} has")
        assert "make .venv/.ready" in state.message
    assert not (project / "data.txt").exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_folder_whose_code_is_not_what_was_deployed_is_refused_and_one_with_other_params_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(project)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NFM_TRACKER", "none")
    deployed = head(project)
    assert deployed_run(single_stages, deployed, stages=["prepare"]).is_completed()
    for flow in (pipeline, single_stages):
        state = deployed_run(flow, "0" * 40, stages=["prepare"])
        assert state.name == "Refused"
        assert f"at commit {deployed[:12]} and cannot be held against 000000000000, which was deployed" in state.message

    commit_line(project / "params.yaml")
    state = deployed_run(single_stages, deployed, stages=["prepare"])
    assert state.is_completed(), state.message

    commit_line(project / "stage.py")
    state = deployed_run(single_stages, deployed, stages=["prepare"])
    assert state.name == "Refused"
    wanted = f"{project} is at commit {head(project)[:12]}, where stage.py is not as at {deployed[:12]}"
    assert state.message.startswith(wanted)
    assert deployed_run(single_stages, head(project), stages=["prepare"]).is_completed()


def head(project: Path) -> str:
    return shell(["git", "rev-parse", "HEAD"], project).strip()


def commit_line(path: Path) -> None:
    with path.open("a") as file:
        file.write("# another line\n")
    shell(["git", "commit", "--quiet", "--all", "--message", "change"], path.parent)
