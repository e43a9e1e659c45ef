"""Runs whose process was killed: the server calls them Crashed, and nothing stays Running."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.flow_engine import run_flow_sync
from prefect.states import Pending, Running

from flows.elsewhere import FLOW as STAGES
from flows.fan_out import FLOW as SHARES
from flows.pipeline import pipeline
from flows.retrain import retrain
from flows.zombies import FLOWS, NAME, NEVER, install, sweep
from tests.conftest import ROOT
from tests.test_flows import wait_for

WITHIN = 70.0  # instead of 600, with signs of life every 30 s instead of 180

LONG = """\
import time
from prefect import flow, tags, task

@task(name="stage")
def stage():
    time.sleep(600)

@flow(name="nfm")
def run():
    stage()

with tags("nfm"):
    run()
"""
REFUSED = """\
from prefect import flow, tags
from prefect.states import Failed

@flow(name="nfm")
def run():
    return Failed(name="Refused", message="width is 0")

with tags("nfm", "refused"):
    run(return_state=True)
"""


def states(client: Any, name: str) -> tuple[str, list[str]]:
    """Types of the states of the flow run that a process has started, and of its tasks."""
    (run,) = client.read_flow_runs(flow_run_filter=of(name))
    return run.state_type.value, [t.state_type.value for t in client.read_task_runs(flow_run_filter=of(name))]


def of(name: str) -> FlowRunFilter:
    mark: Any = {"tags": {"all_": [name]}}
    return FlowRunFilter.model_validate(mark)


def stuck(client: SyncPrefectClient, *states: State) -> UUID:
    """A flow run that reaches states and gives no sign of life in the last: its worker, or it, was killed at once."""
    run = client.create_flow_run(pipeline, tags=["nfm", "stuck"])
    for state in states:
        client.set_flow_run_state(run.id, state)
    return run.id


@pytest.mark.timeout(600)
def test_a_killed_run_is_crashed_with_its_tasks_and_one_that_lives_is_not(prefect_server: str, tmp_path: Path):
    assert install(WITHIN, WITHIN) == install(WITHIN, WITHIN)  # one of each, however often
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    (tmp_path / "refused.py").write_text(REFUSED)
    subprocess.run([sys.executable, "refused.py"], cwd=tmp_path, env=environment, check=True)
    processes = {}
    for name in ("dead", "alive"):
        (tmp_path / f"{name}.py").write_text(LONG.replace('tags("nfm")', f'tags("nfm", "{name}")'))
        processes[name] = subprocess.Popen([sys.executable, f"{name}.py"], cwd=tmp_path, env=environment)
    try:
        with get_client(sync_client=True) as client:
            for name in (NAME, NEVER):
                (automation,) = client.read_automations_by_name(name)
                assert automation.enabled
            silent = [stuck(client, Pending()), stuck(client, Pending(), Running())]
            for name in processes:
                wait_for(lambda name=name: len(client.read_flow_runs(flow_run_filter=of(name))) == 1, 120)
                wait_for(lambda name=name: states(client, name) == ("RUNNING", ["RUNNING"]), 120)
            processes["dead"].send_signal(signal.SIGKILL)
            processes["dead"].wait()
            assert states(client, "dead") == ("RUNNING", ["RUNNING"])
            swept = sweep(settled=0)
            assert swept == 0 or states(client, "dead")[0] == "CRASHED"  # else nobody knows yet
            wait_for(lambda: states(client, "dead")[0] == "CRASHED", 300)
            wait_for(lambda: {client.read_flow_run(run).state_type for run in silent} == {StateType.CRASHED}, 300)
            (run,) = client.read_flow_runs(flow_run_filter=of("dead"))
            assert run.state.message == f"no sign of life for {WITHIN:g} seconds"
            assert sweep() == 0  # a word of the task may be on its way
            assert sweep(settled=0) == 1 - swept
            assert states(client, "dead") == ("CRASHED", ["CRASHED"])
            assert states(client, "alive") == ("RUNNING", ["RUNNING"])
            assert sweep(settled=0) == 0
            (refused,) = client.read_flow_runs(flow_run_filter=of("refused"))  # silent for longer
            assert refused.state_name == "Refused"
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("slots", [1, 2])
def test_a_run_whose_deployments_only_slot_another_has_is_crashed(slots: int):
    with get_client(sync_client=True) as client:

        @flow(name=pipeline.name)
        def probe() -> int:
            client.set_flow_run_state(later.id, Running(), force=True)
            return sweep()

        deployment = client.create_deployment(client.create_flow(probe), f"slots-{slots}", concurrency_limit=slots)
        dead, taken, later, own = (client.create_flow_run_from_deployment(deployment) for _ in range(4))
        # Without a slot, as when its lease has run out.
        client.set_flow_run_state(dead.id, Running(), force=True)
        client.set_flow_run_state(taken.id, Pending(), force=True)
        assert run_flow_sync(probe, flow_run=own, parameters={}) == (2 if slots == 1 else 0)
        ends = [client.read_flow_run(run.id).state_type for run in (dead, taken, later)]
        crashed = [StateType.CRASHED, StateType.CRASHED, StateType.RUNNING]
        assert ends == (crashed if slots == 1 else [StateType.RUNNING, StateType.PENDING, StateType.RUNNING])
        assert client.read_flow_run(own.id).state_type == StateType.COMPLETED
        assert client.read_deployment(deployment).global_concurrency_limit.active_slots == 0


def test_the_flows_that_are_swept_are_those_that_there_are():
    assert set(FLOWS) == {pipeline.name, STAGES, SHARES, retrain.name}


def test_without_a_server_nothing_is_swept_and_nothing_raised(monkeypatch: pytest.MonkeyPatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert sweep() == 0


def test_the_deploy_step_installs_it_with_time_for_three_signs():
    assert "- flows.zombies.install:\n      within: 600" in (ROOT / "prefect.yaml").read_text()
    template = json.loads((ROOT / "infra" / "kubernetes" / "base-job-template.json").read_text())
    start = template["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert f"pending: {2 * start}" in (ROOT / "prefect.yaml").read_text()
    from prefect.settings import get_current_settings

    assert 600 > 3 * (get_current_settings().flows.heartbeat_frequency or 0) > 0
