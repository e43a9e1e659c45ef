"""Stages on other machines: once each, by the DVC remote alone, of the same code, and what is refused."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Completed, Crashed

import flows.elsewhere
from flows.checkout import Checkout
from flows.elsewhere import Elsewhere
from flows.identity import Identity, identity_of, refuse_another
from flows.pipeline import elsewhere_of, pipeline, run_graph
from flows.stages import single_stages
from nfm.config import read_mapping, with_overrides
from nfm.errors import InputError
from tests.conftest import ROOT, Tiny, shell
from tests.deployed import make_project, prefect, workers

# A student waits for the other one: it ends well only if both run at once.
MEET = """\
if target.parent.name == "student":
    place = Path(os.environ["MEET"])
    (place / target.name).write_text(os.getcwd())
    deadline = time.monotonic() + 900
    while len(list(place.iterdir())) < 2:
        assert time.monotonic() < deadline, "the other one never came"
        time.sleep(0.1)
"""
OURS = Identity(commit="0" * 40, lock="0" * 64)


@pytest.fixture(scope="module")
def cpu_pool(prefect_server: str) -> str:
    """The server, with the deployment of stages on cpu-pool."""
    shell(prefect("work-pool", "create", "cpu-pool", "--type", "process"), ROOT, {"PREFECT_API_URL": prefect_server})
    shell(prefect("deploy", "--name", "cpu-pool"), ROOT, {"PREFECT_API_URL": prefect_server})
    return prefect_server


@dataclass(frozen=True)
class Machines:
    """Three clones with nothing in common but a bucket: of who asks, and of two workers.

    Attributes:
        base: Their parent folder.
        environment: Of every process.
    """

    base: Path
    environment: dict[str, str]

    def of(self, name: str) -> dict[str, str]:
        """The environment on one machine, where the file NAME.runs lists the stages that were executed."""
        own = {"RUNS": f"{self.base / name}.runs", "DVC_SITE_CACHE_DIR": f"{self.base / name}.site"}
        return {**self.environment, **own, "PREFECT_HOME": f"{self.base / name}.prefect"}

    def clone(self, name: str) -> Path:
        shell(["git", "clone", "--quiet", str(self.base / "origin"), name], self.base)
        return self.base / name

    def executed(self, name: str) -> list[str]:
        runs = self.base / f"{name}.runs"
        return sorted(runs.read_text().split()) if runs.exists() else []

    def flow(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.pipeline", *arguments]
        folder, environment = self.base / name, self.of(name)
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def machines(tmp_path: Path, bucket: dict[str, str], cpu_pool: str) -> Iterator[Machines]:
    remote = (
        "[core]\n    remote = store\n['remote \"store\"']\n"
        f"    url = s3://store/{tmp_path.name}\n    endpointurl = {bucket['ADDRESS']}\n"
    )
    make_project(tmp_path / "origin", {"infra": {"student": "cpu-pool"}}, remote)
    (tmp_path / "meet").mkdir()
    more = {"PREFECT_API_URL": cpu_pool, "NFM_TRACKER": "none", "TWIST": MEET, "MEET": str(tmp_path / "meet")}
    machines = Machines(tmp_path, {**os.environ, **bucket, **more})
    with workers({("cpu-pool", machines.clone(name)): machines.of(name) for name in ("one", "two")}):
        machines.clone("asker")
        yield machines


def asked_for() -> int:
    """How many flow runs have been asked of other machines."""
    ours: Any = {"tags": {"all_": ["stage"]}}
    with get_client(sync_client=True) as client:
        return client.count_flow_runs(flow_run_filter=FlowRunFilter.model_validate(ours))


@pytest.mark.timeout(1800)
def test_two_machines_run_students_at_once_and_only_the_remote_carries(machines: Machines):
    before = asked_for()
    answer = machines.flow("asker")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "4 stages: 2 run, 2 run elsewhere" in answer.stdout
    # At once, since each waited for the other; in two clones, since each worker takes one.
    there = {name: (machines.base / "meet" / name).read_text() for name in ("independent", "teacher")}
    clones = {str(Path(folder).relative_to(machines.base).parts[0]) for folder in there.values()}
    assert clones == {"one", "two"}
    assert machines.executed("asker") == ["prepare", "report"]
    assert sorted(machines.executed("one") + machines.executed("two")) == ["student@independent", "student@teacher"]
    assert (machines.base / "asker" / "report.txt").read_text().count("made") == 5
    assert asked_for() == before + 2

    # Again, and in a clone that has nothing: what the remote has is not asked for again.
    assert "4 up to date" in machines.flow("asker").stdout
    machines.clone("late")
    answer = machines.flow("late", "--stages", "student")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert machines.executed("late") == []
    assert (machines.base / "late" / "student" / "teacher" / "file").is_file()
    assert asked_for() == before + 2

    # Code that the workers do not have: theirs is not taken for it.
    script = machines.base / "asker" / "stage.py"
    script.write_text(script.read_text() + "# changed\n")
    answer = machines.flow("asker", "--stages", "student@teacher")
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith("nfm: stage.py in ")
    shell(["git", "commit", "--quiet", "--all", "--message", "changed"], machines.base / "asker")
    answer = machines.flow("asker", "--stages", "student@teacher")
    assert answer.returncode == 1
    assert "is at commit" in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr
    assert len(machines.executed("one") + machines.executed("two")) == 2


@flow(name="asked")
def asked(root: Path, stages: list[str]):
    return run_graph(root, stages, asked=True)


@pytest.mark.usefixtures("prefect_server")
def test_what_is_asked_for_runs_and_is_pushed_and_what_it_needs_never_runs(tiny: Tiny):
    (tiny.root / ".dvc" / "config").write_text(
        f"[core]\n    remote = near\n['remote \"near\"']\n    url = {tiny.root.parent / 'store'}\n"
    )
    tiny.dvc("push", "--quiet", "--run-cache")
    (tiny.root / "params.yaml").write_text("scale: 2\n")
    state = asked(tiny.root, ["report"], return_state=True)
    assert state.is_failed()
    assert "work@left is in no cache here and not in the DVC remote" in state.message
    assert tiny.executed == []
    state = asked(tiny.root, ["work"], return_state=True)
    assert state.is_completed(), state.message
    assert tiny.executed == ["work@left", "work@right"]
    # Another machine: its cache is empty, and it gets what was pushed.
    clone = Tiny(tiny.root.parent / "clone", tiny.root.parent / "clone.runs")
    tiny.git("commit", "--quiet", "--all", "--message", "two")
    tiny.git("clone", "--quiet", str(tiny.root), str(clone.root))
    (clone.root / "dvc.lock").unlink()
    state = asked(clone.root, ["report"], return_state=True)
    assert state.is_completed(), state.message
    assert sorted(tiny.executed) == ["report", "work@left", "work@right"]


def test_one_request_is_one_flow_run_until_it_has_ended(cpu_pool: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flows.elsewhere, "POLL", 0.1)
    made: list[Any] = []

    def noted(*arguments: Any, **more: Any) -> Any:
        made.append(run_deployment(*arguments, **more))
        return made[-1]

    monkeypatch.setattr(flows.elsewhere, "run_deployment", noted)
    ask = Elsewhere({"student": "cpu-pool"}, {"infra": {}, "number": os.getpid()}, OURS, None)
    found: list[Any] = []

    @flow
    def one():
        return ask.run("student", lambda: False)

    def ask_once() -> None:
        found.append(one(return_state=True))

    def end(state: Any) -> None:
        """Has two flow runs ask, then ends what they have asked for."""
        before = asked_for()
        made.clear()
        threads = [threading.Thread(target=copy_context().run, args=(ask_once,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 200
        while len(made) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert asked_for() == before + 1
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(made[0].id, state, force=True)
        for thread in threads:
            thread.join(200)

    end(Crashed(message="the machine is gone"))
    assert [state.name for state in found] == ["Crashed", "Crashed"]
    assert all("the machine is gone" in state.message for state in found)
    found.clear()
    end(Completed())
    assert all(state.is_completed() for state in found)
    end(Cancelled())
    assert len(found) == 4


def test_what_is_asked_for_is_cancelled_with_the_flow_run_that_asks(cpu_pool: str):
    ask = Elsewhere({"student": "cpu-pool"}, {"infra": {}, "cancelled": os.getpid()}, OURS, None)

    @flow
    def one():
        return ask.run("student", lambda: True)

    state = one(return_state=True)
    assert state.name == "Stopped"
    with get_client(sync_client=True) as client:
        ours: Any = {"name": {"any_": ["student"]}, "state": {"name": {"any_": ["Cancelled"]}}}
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(ours))
    assert any(run.parameters["overrides"].get("cancelled") == os.getpid() for run in runs)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    folder = tmp_path_factory.mktemp("identity") / "project"
    make_project(folder)
    return folder


def test_params_results_and_notes_do_not_change_what_the_code_is(project: Path):
    own = identity_of(Checkout(project))
    with (project / "params.yaml").open("a") as params:
        params.write("# another\n")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    (project / "notes.txt").write_text("a note")
    try:
        assert identity_of(Checkout(project)) == own
        refuse_another(own, Checkout(project))
    finally:
        shell(["git", "checkout", "--quiet", "."], project)


def test_other_code_another_lock_and_another_commit_are_refused(project: Path):
    own = identity_of(Checkout(project))
    script, lock = project / "stage.py", project / "requirements.lock"
    try:
        script.write_text("changed")
        with pytest.raises(InputError, match=r"^stage\.py in .* is not as committed"):
            identity_of(Checkout(project))
        shell(["git", "checkout", "--quiet", "."], project)
        lock.write_text("changed")
        with pytest.raises(InputError, match=r"requirements\.lock in the worker's folder .* SHA-256"):
            refuse_another(own, Checkout(project))
    finally:
        shell(["git", "checkout", "--quiet", "."], project)
    with pytest.raises(InputError, match=f"is at commit {own.commit[:12]}, but the flow run that asks is at 0000"):
        refuse_another(OURS, Checkout(project))


def test_infra_names_stages_their_items_and_nothing_else():
    checkout = Checkout(ROOT)
    places = checkout.placed(
        {"student@teacher-0": "fast", "student": "slow", "prepare": "slow", "couple-one-step": "x"}
    )
    assert places["student@teacher-0"] == "fast"
    assert places["student@independent-0"] == places["prepare"] == "slow"
    with pytest.raises(InputError, match=r"infra names 'studnet'.*did you mean 'student'"):
        checkout.placed({"studnet": "slow"})
    with pytest.raises(InputError, match=r"infra names 'report', whose output results/"):
        checkout.placed({"report": "slow"})


def test_infra_that_leads_nowhere_is_refused_before_anything_runs(project: Path, cpu_pool: str, monkeypatch):
    params = read_mapping(project / "params.yaml")
    with pytest.raises(InputError, match=r"infra sends student to 'cpu-pol'.*did you mean 'cpu-pool'"):
        elsewhere_of(project, with_overrides(params, {"infra.student": "cpu-pol"}), None)
    monkeypatch.chdir(project)
    state = pipeline(overrides={"infra.student": "cpu-pool"}, return_state=True)  # pyright: ignore
    assert state.name == "Refused"
    assert "no default DVC remote" in state.message
    assert elsewhere_of(project, params, None) is None


@pytest.mark.usefixtures("prefect_server")
def test_a_worker_of_other_code_refuses_in_one_sentence_and_runs_nothing(project: Path, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(project)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    state = single_stages(["prepare"], asker=OURS, return_state=True)  # pyright: ignore
    assert state.name == "Refused"
    assert state.message.endswith("`prefect deploy --all` where it clones)")
    assert not (tmp_path / "runs").exists()
