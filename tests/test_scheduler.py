"""The pinned versions of Prefect, FastAPI and SQLAlchemy deploy and schedule together."""

import sys
import time

import httpx

from tests.conftest import ROOT, shell


def test_a_cron_deployment_of_the_flow_gets_its_runs(prefect_server: str):
    server = httpx.Client(base_url=prefect_server, timeout=30)
    pool = {"name": "nfm", "type": "process"}
    assert server.post("/work_pools/", json=pool).status_code == 201
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "pipeline"]
    shell(command, ROOT, {"PREFECT_API_URL": prefect_server})
    deployment = server.get("/deployments/name/nfm/pipeline").json()
    assert deployment["entrypoint"] == "flows/pipeline.py:pipeline"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    (step,) = deployment["pull_steps"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(ROOT)
    schedule = [{"schedule": {"cron": "0 4 * * *", "timezone": "UTC"}, "active": True}]
    made = server.post(f"/deployments/{deployment['id']}/schedules", json=schedule)
    assert made.status_code == 201
    runs = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    deadline = time.monotonic() + 30
    while not (found := server.post("/flow_runs/filter", json=runs).json()):
        assert time.monotonic() < deadline, "the scheduler has made no runs"
        time.sleep(0.2)
    assert {run["expected_start_time"][11:16] for run in found} == {"04:00"}
