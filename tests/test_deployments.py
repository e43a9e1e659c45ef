"""The deployments of prefect.yaml on a fresh server: made twice the same, and each run by a worker."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.seen import Seen, digest_of, leave_mark
from flows.zombies import NAME, NEVER
from nfm.config import read_mapping
from nfm.recipes import recipe_names
from tests.conftest import shell
from tests.deployed import KINDS, make_project, prefect, workers
from tests.servers import prefect_server_in
from tests.test_stack import wait_for

STAGES = ["cpu-pool", "gpu-pool", "stages", "kubernetes-gpu", "kubernetes-8gpu"]
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
NAMES = [
    *(f"nfm/{n}" for n in ("pipeline", "pipeline-kubernetes", "nightly")),
    "nfm-retrain/retrain",
    *(f"nfm-stages/{n}" for n in STAGES),
]


@dataclass(frozen=True)
class Deployed:
    """A project whose deployments a server has.

    Attributes:
        root: The project.
        commit: Its commit.
        environment: Of whoever talks to the server.
        server: A client of its API.
        twice: What the server had after the first deploy and after the second.
    """

    root: Path
    commit: str
    environment: dict[str, str]
    server: httpx.Client
    twice: tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Iterator[Deployed]:
    base = tmp_path_factory.mktemp("deployed")
    store = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {base / 'store'}\n"
    commit = make_project(base / "project", remote=store)
    origin = base / "origin.git"
    shell(["git", "clone", "--quiet", "--bare", str(base / "project"), str(origin)], base)
    shell(["git", "remote", "add", "origin", f"file://user:secret@{origin}"], base / "project")
    with prefect_server_in(tmp_path_factory.mktemp("server")) as address:
        environment = {**os.environ, "PREFECT_API_URL": address, "NFM_TRACKER": "none", "RUNS": str(base / "runs")}
        # On a loaded machine a server on SQLite may wait for its own locks.
        with httpx.Client(base_url=address, timeout=300) as server:
            for pool, kind in KINDS.items():
                shell(prefect("work-pool", "create", pool, "--type", kind), base, environment)
            twice = [_deploy(base / "project", environment, server) for _ in range(2)]
            yield Deployed(base / "project", commit, environment, server, (twice[0], twice[1]))


def _deploy(root: Path, environment: dict[str, str], server: httpx.Client) -> dict[str, Any]:
    """Deploys all; returns what the server then has, by name."""
    _deploy_those(["--all"], root, environment)
    flows = {flow["id"]: flow["name"] for flow in server.post("/flows/filter", json={}).json()}
    found = server.post("/deployments/filter", json={}).json()
    return {f"{flows[d['flow_id']]}/{d['name']}": d for d in found}


def _deploy_those(which: list[str], root: Path, environment: dict[str, str]) -> None:
    # NFM_HOME is the workers' own: that of whoever deploys must not matter.
    shell(prefect("deploy", *which), root, {**environment, "NFM_HOME": "/elsewhere"})


def test_deploying_again_changes_nothing(deployed: Deployed):
    first, second = deployed.twice
    assert set(first) == set(NAMES)
    automations = deployed.server.post("/automations/filter", json={}).json()
    assert sorted((a["name"], a["enabled"]) for a in automations) == sorted([(NAME, True), (NEVER, True)])
    changing = {"updated", "created", "updated_by", "last_polled", "status", "version_id", "version_info"}
    for name in NAMES:
        one, two = ({k: v for k, v in d[name].items() if k not in changing} for d in (first, second))
        for schedule in (*one["schedules"], *two["schedules"]):
            for key in ("updated", "created", "id"):
                schedule.pop(key, None)
        assert one == two
        assert two["version"] == deployed.commit


def test_the_form_has_every_parameter_with_its_description_and_refuses_what_cannot_be(deployed: Deployed):
    for name, deployment in deployed.twice[1].items():
        schema = deployment["parameter_openapi_schema"]
        assert all(len(p["description"]) > 20 for p in schema["properties"].values()), name
        (names, _) = schema["properties"]["recipe"]["anyOf"]
        assert names["enum"] == recipe_names()
    stages = deployed.twice[1]["nfm-stages/stages"]
    assert stages["parameter_openapi_schema"]["required"] == ["stages"]
    for parameters, wrong in (
        ({"stages": ["report"], "recipe": "digit"}, "digit"),
        ({"stages": []}, "stages"),
        ({"stages": ["a stage; rm"]}, "rm"),
        ({}, "stages"),
    ):
        answer = deployed.server.post(f"/deployments/{stages['id']}/create_flow_run", json={"parameters": parameters})
        assert answer.status_code == 409, parameters
        assert wrong in answer.json()["detail"]


def test_limits_schedules_pools_and_ways_to_the_code_are_those_of_the_file(deployed: Deployed):
    deployments = deployed.twice[1]
    for name in ("nfm/pipeline", "nfm/nightly", "nfm-retrain/retrain", "nfm-stages/stages"):
        assert deployments[name]["global_concurrency_limit"]["limit"] == 1
        assert deployments[name]["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        (step,) = deployments[name]["pull_steps"]
        assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(deployed.root)
    for name, cron in {"nfm/nightly": "0 3 * * *", "nfm-retrain/retrain": "30 1 * * *"}.items():
        (schedule,) = deployments[name]["schedules"]
        assert (schedule["schedule"]["cron"], schedule["active"]) == (cron, False)
    assert sorted(name for name, d in deployments.items() if d["schedules"]) == ["nfm-retrain/retrain", "nfm/nightly"]
    for pool in ("cpu-pool", "gpu-pool"):
        deployment = deployments[f"nfm-stages/{pool}"]
        assert deployment["work_pool_name"] == pool
        assert "/elsewhere" not in str(deployment["pull_steps"])
    for name, gpus in (("nfm-stages/kubernetes-gpu", 1), ("nfm-stages/kubernetes-8gpu", 8)):
        (step,) = deployments[name]["pull_steps"]
        clone = step["prefect.deployments.steps.git_clone"]
        assert clone == {
            "repository": f"file://{deployed.root.parent / 'origin.git'}",  # without the password
            "commit_sha": deployed.commit,
        }
        assert deployments[name]["job_variables"] == {"gpus": gpus}


SAVES = """
import signal
def save(*_):
    time.sleep(1)
    Path({noted!r}).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path({noted!r}).write_text("ready")
time.sleep(300)
"""


@pytest.mark.timeout(600)
def test_a_preempted_run_lets_its_stage_save_and_is_scheduled_anew(deployed: Deployed):
    """As Kubernetes ends a pod: SIGTERM to its one command, of which Prefect's worker sees the exit status alone."""
    noted = deployed.root.parent / "noted"
    content = {"parameters": {"stages": ["prepare"]}, "state": {"type": "SCHEDULED"}}
    deployment = deployed.twice[1]["nfm/pipeline"]["id"]
    run_id = deployed.server.post(f"/deployments/{deployment}/create_flow_run", json=content).json()["id"]
    behaviour = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule", "TWIST": SAVES.format(noted=str(noted))}
    with (deployed.root.parent / "pod.log").open("w") as log:
        pod = subprocess.Popen(
            prefect("flow-run", "execute", run_id),
            cwd=deployed.root.parent,
            env={**deployed.environment, **behaviour},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(noted.exists, 300)
        pod.send_signal(signal.SIGTERM)
        began = time.monotonic()
        status = pod.wait(60)
    finally:
        pod.kill()
    assert time.monotonic() - began < 10
    assert noted.read_text() == "saved"
    assert status == 0
    state = deployed.server.get(f"/flow_runs/{run_id}").json()["state"]
    assert (state["type"], state["name"]) == ("SCHEDULED", "AwaitingRetry")
    deployed.server.delete(f"/flow_runs/{run_id}")


@pytest.mark.timeout(1800)
def test_every_deployment_runs_to_completion(deployed: Deployed):
    # No cluster here: a process worker stands in for the pods, and clones as they would.
    shell(prefect("work-pool", "delete", "kubernetes"), deployed.root, deployed.environment)
    shell(prefect("work-pool", "create", "kubernetes", "--type", "process"), deployed.root, deployed.environment)
    lost = ["--name", "pipeline-kubernetes", "--name", "kubernetes-gpu", "--name", "kubernetes-8gpu"]
    _deploy_those(lost, deployed.root, deployed.environment)
    # The stages of this project make no student to publish: to the retraining nothing is new.
    leave_mark(deployed.root, Seen("digits, as published", digest_of(read_mapping(deployed.root / "params.yaml")), "."))
    with (
        workers({(pool, deployed.root): deployed.environment for pool in KINDS}),
        ThreadPoolExecutor(2) as threads,
    ):
        states = dict(zip(NAMES, threads.map(lambda name: _run(name, deployed), NAMES), strict=True))
    assert states == dict.fromkeys(NAMES, "COMPLETED")
    assert (deployed.root / "report.txt").read_text().count("made") == 5


def _run(name: str, deployed: Deployed) -> str:
    """Runs a deployment; returns the type of its run's final state."""
    run_id = _ask(name, deployed)
    deadline = time.monotonic() + 900
    while (state := deployed.server.get(f"/flow_runs/{run_id}").json()["state"])["type"] not in FINAL:
        assert time.monotonic() < deadline, f"{name} has been {state['type']} since {state['timestamp']}"
        time.sleep(1)
    return state["type"]


def _ask(name: str, deployed: Deployed) -> str:
    """Asks for a run and returns its id: by the command line once without and once with parameters, else by the API."""
    if name in ("nfm/pipeline", "nfm-stages/stages"):
        # Without --watch, which on a busy server may wait for an event that never comes.
        command = prefect("deployment", "run", name)
        if name == "nfm-stages/stages":
            command += ["--param", 'stages=["prepare"]']
        (run_id,) = re.findall(r"UUID: (\S+)", shell(command, deployed.root, deployed.environment))
        return run_id
    parameters = {"stages": ["prepare"]} if name.startswith("nfm-stages/") else {}
    deployment = deployed.server.get(f"/deployments/name/{name}").raise_for_status().json()
    content = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    answer = deployed.server.post(f"/deployments/{deployment['id']}/create_flow_run", json=content)
    return answer.raise_for_status().json()["id"]
