"""Work of a stage that is shared among tasks: over each task runner, once, and stopped with its flow."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.task_runners import ThreadPoolTaskRunner

from flows.fan_out import FLOW, FanOut
from flows.pipeline import run_graph
from flows.slots import Slots
from nfm.errors import InputError
from tests.conftest import ROOT, Tiny
from tests.servers import free_port
from tests.test_flows import wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")

# A stage of six parts: a share makes every N-th, the stage those that are missing.
SHARED = """\
import os, sys, time
from pathlib import Path
work = Path("parts")
work.mkdir(exist_ok=True)
index, count = (int(n) for n in sys.argv[-1].split("/")) if "--share" in sys.argv else (0, 1)
with open(os.environ["RUNS"], "a") as file:
    file.write((sys.argv[-1] if "--share" in sys.argv else "whole") + chr(10))
exec(os.environ.get("TWIST", ""))
for part in range(index, 6, count):
    if not (work / str(part)).exists():
        (work / str(part)).write_text(f"part {part} by {index} of {count}, child of {os.getppid()}")
if count == 1:
    Path("data.txt").write_text("".join(str(part) for part in range(6)))
"""
THREE = FanOut(3, "threads", None)


@flow(name="shared", task_runner=ThreadPoolTaskRunner(max_workers=8))
def run(root: Path, stages: list[str], fan_out: FanOut | None):
    return run_graph(root, stages, fan_out=fan_out)


def bring(tiny: Tiny, fan_out: FanOut | None = THREE) -> Any:
    return run(tiny.root, ["data"], fan_out, return_state=True)


@pytest.fixture
def project(tiny: Tiny) -> Tiny:
    """The tiny project with another first stage, which has not run."""
    text = (tiny.root / "dvc.yaml").read_text()
    assert "cmd: python stage.py data.txt" in text
    text = text.replace("cmd: python stage.py data.txt", "cmd: python shared.py data.txt\n    meta: {shares: true}")
    (tiny.root / "dvc.yaml").write_text(text)
    (tiny.root / "shared.py").write_text(SHARED)
    return tiny


def parts(tiny: Tiny) -> list[str]:
    """Who made each part."""
    return [(tiny.root / "parts" / str(part)).read_text() for part in range(6)]


@pytest.mark.parametrize("runner", ["threads", "dask", "ray"])
def test_each_share_is_done_once_by_a_task_and_the_stage_finds_all_done(project: Tiny, runner: str):
    state = bring(project, FanOut(3, runner, None))
    assert state.is_completed(), state.message
    assert project.executed == ["0/3", "1/3", "2/3", "whole"]
    made = [text.partition(", ")[0] for text in parts(project)]
    assert made == [f"part {part} by {part % 3} of 3" for part in range(6)]
    here = all(text.endswith(f"child of {os.getpid()}") for text in parts(project))
    assert here == (runner == "threads")  # elsewhere by processes of the cluster
    # Up to date, and restored: no share is asked for again.
    assert bring(project).is_completed()
    (project.root / "data.txt").unlink()
    (project.root / "dvc.lock").unlink()
    assert bring(project).is_completed()
    assert (project.root / "data.txt").read_text() == "012345"
    assert len(project.executed) == 4


def test_the_shares_are_a_flow_run_with_a_task_each(project: Tiny):
    bring(project)
    ours: Any = {"name": {"any_": [FLOW]}}
    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(flow_filter=FlowFilter(**ours), sort="START_TIME_DESC", limit=1)[0]  # pyright: ignore
        assert newest.name == "data"
        assert newest.parameters == {}  # nothing of the environment
        runs = FlowRunFilter(id={"any_": [newest.id]})  # pyright: ignore
        wait_for(lambda: len(client.read_task_runs(flow_run_filter=runs)) == 3)
        names = sorted(task.name for task in client.read_task_runs(flow_run_filter=runs))
    assert names == ["data 0/3", "data 1/3", "data 2/3"]


def test_without_fan_out_the_stage_works_alone(project: Tiny):
    assert bring(project, None).is_completed()
    assert project.executed == ["whole"]


def test_a_share_that_was_killed_is_tried_again_and_bad_input_is_not(project: Tiny, monkeypatch: pytest.MonkeyPatch):
    once = "\n".join(
        [
            "mark = Path('killed-once')",
            "if index == 1 and not mark.exists():",
            "    mark.touch()",
            "    os.kill(os.getpid(), 9)",
        ]
    )
    monkeypatch.setenv("TWIST", once)
    assert bring(project).is_completed()
    assert project.executed == ["0/3", "1/3", "1/3", "2/3", "whole"]
    (project.root / "data.txt").unlink()
    shutil.rmtree(project.root / ".dvc" / "cache")
    project.runs.unlink()
    refuse = "if index == 2: print('nfm: scale is 1, expected 2', file=sys.stderr); sys.exit(2)"
    monkeypatch.setenv("TWIST", refuse)
    state = bring(project)
    assert state.is_failed()
    assert state.message.startswith("share 2/3 of data: scale is 1, expected 2 (1 of 3 shares failed) (")
    assert project.executed == ["0/3", "1/3", "2/3"]


def test_sigterm_ends_the_shares_with_the_flow(project: Tiny, prefect_server: str):
    (project.root / "flow.py").write_text(
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from tests.test_fan_out import THREE, run\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "run(Path.cwd(), ['data'], THREE)\n"
    )
    wait = "Path(f'pid-{index}').write_text(str(os.getpid())); time.sleep(600)"
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "PYTHONPATH": str(ROOT), "TWIST": wait}
    child = subprocess.Popen([sys.executable, "flow.py"], cwd=project.root, env=environment)
    wait_for(lambda: len(list(project.root.glob("pid-*"))) >= min(3, os.cpu_count() or 1), 120)
    pids = [int(file.read_text() or "0") for file in project.root.glob("pid-*")]
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "whole" not in project.executed


def test_a_runner_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prefect_ray.task_runners", None)
    with pytest.raises(InputError, match=r"run.fan_out.runner is 'ray', but prefect_ray is not installed") as raised:
        FanOut(2, "ray", None).task_runner(2)
    assert "pip install 'nfm[ray]'" in str(raised.value)


def test_a_running_cluster_does_the_shares_by_the_commands_of_the_docs(project: Tiny):
    address, dask = f"tcp://127.0.0.1:{free_port()}", [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host", address, "--no-dashboard"]
    worker = [*dask, "worker", address, "--nthreads", "1", "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": "."}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    servers = [subprocess.Popen(command, cwd=ROOT, env=environment, **quiet) for command in (scheduler, worker)]
    try:
        params = {"run": {"fan_out": {"tasks": 3, "runner": "dask", "address": address}}}
        state = bring(project, FanOut.of(params))
    finally:
        for server in servers:
            server.terminate()
            server.wait(60)
    assert state.is_completed(), state.message
    assert project.executed == ["0/3", "1/3", "2/3", "whole"]


def test_one_task_is_none():
    assert FanOut.of({"run": {"fan_out": {"tasks": 1, "runner": "dask", "address": None}}}) is None


def test_who_wants_several_slots_gets_them_together_and_is_not_passed_by_the_less_urgent():
    slots, order, done = Slots(3), [], threading.Event()

    def hold(urgency: int, count: int) -> None:
        with slots.taken(urgency, count):
            order.append((urgency, count))
            done.wait(0.05)

    with slots.taken(9, 2):
        threads = [threading.Thread(target=hold, args=wanted) for wanted in ((5, 3), (1, 1), (7, 1))]
        for thread in threads:
            thread.start()
        wait_for(lambda: order == [(7, 1)] and len(slots._waiting) == 2)
    for thread in threads:
        thread.join()
    assert order == [(7, 1), (5, 3), (1, 1)]
