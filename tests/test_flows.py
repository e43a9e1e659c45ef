"""The flow against DVC: both agree on what is up to date, and neither repeats the other's work."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

import flows.pipeline
import flows.stage
from flows.checkout import Checkout, Plan
from flows.parameters import overrides_of
from flows.pipeline import main, pipeline, run_graph
from flows.process import Processes
from flows.report import closing, publish
from flows.slots import Slots
from flows.stage import push
from flows.words import failure, outcome
from flows.workspace import params_of, workspace
from nfm.errors import InputError
from nfm.tracking import NoParent
from tests.conftest import ROOT, Tiny

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow(name="tiny", task_runner=ThreadPoolTaskRunner(max_workers=8))
def run(root: Path, stages: list[str] | None = None, push: bool = False):
    return run_graph(root, stages or [], push=push)


def outcomes(root: Path, stages: list[str] | None = None, push: bool = False) -> tuple[Any, dict[str, str]]:
    """Runs the flow; returns its state and the names of its stages' states."""
    state = run(root, stages, push, return_state=True)
    with get_client(sync_client=True) as client:
        filter = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
        for _ in range(50):  # states of tasks reach the server as events, a moment later
            tasks = client.read_task_runs(flow_run_filter=filter)
            if all(t.state and (t.state.is_final() or t.state.name == "NotReady") for t in tasks):
                break
            time.sleep(0.1)
    return state, {task.name: task.state_name or "" for task in tasks}


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_what_dvc_has_run_is_cached_to_the_flow_and_the_reverse(tiny: Tiny):
    state, names = outcomes(tiny.root)
    assert state.is_completed()
    assert names == dict.fromkeys(["data", "work@left", "work@right", "report"], "Cached")
    assert tiny.executed == []
    (tiny.root / "params.yaml").write_text("scale: 2\n")
    state, names = outcomes(tiny.root)
    assert names == {
        "data": "Cached",
        "work@left": "Completed",
        "work@right": "Completed",
        "report": "Completed",
    }
    assert "1 up to date, 3 run" in state.message
    assert "up to date" in tiny.dvc("repro").splitlines()[-1]
    assert tiny.executed == ["report", "work@left", "work@right"]
    assert "left scale: 2" in (tiny.root / "report.txt").read_text()


def test_missing_outputs_are_restored_without_running_anything(tiny: Tiny):
    shutil.rmtree(tiny.root / "work")
    (tiny.root / "dvc.lock").unlink()
    _, names = outcomes(tiny.root, ["work@left"])
    assert names == {"data": "Restored", "work@left": "Restored"}
    assert (tiny.root / "work" / "left" / "file").is_file()
    assert not (tiny.root / "work" / "right").exists()
    assert tiny.executed == []


def test_a_damaged_cache_file_is_found_named_and_remade(tiny: Tiny, caplog: pytest.LogCaptureFixture):
    with Repo(str(tiny.root)) as repo:
        stage = next(stage for stage in repo.index.stages if stage.name == "data")
        cached = Path(stage.outs[0].cache_path)
    cached.chmod(0o644)
    cached.write_text("damaged")
    cached.chmod(0o444)  # DVC takes a write-protected file for good
    (tiny.root / "data.txt").unlink()
    state, names = outcomes(tiny.root, ["data"])
    assert names == {"data": "Completed"}, state.message
    assert "data: data.txt was damaged here or in DVC's cache; removed" in caplog.text
    assert tiny.executed == ["data"]
    assert (tiny.root / "data.txt").read_text().startswith("data.txt scale")


def test_every_damaged_or_missing_file_of_a_folder_is_named(tiny: Tiny):
    checkout = Checkout(tiny.root)
    checkout.plan()
    assert checkout.damaged("work@left") == []
    (tiny.root / "work" / "left" / "file").unlink()
    assert checkout.damaged("work@left") == ["work/left/file"]


def test_bad_input_is_one_sentence_without_a_retry_and_stops_what_is_downstream(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    (tiny.root / "params.yaml").write_text("scale: 2\n")
    refuse = "print('nfm: scale is 2, expected 1', file=sys.stderr); sys.exit(2)"
    monkeypatch.setenv("TWIST", f"if target.name == 'left': {refuse}")
    state, names = outcomes(tiny.root)
    assert names["work@left"] == "Failed"
    assert names["work@right"] == "Completed"
    assert names["report"] == "NotReady"
    assert state.message.startswith("work@left: scale is 2, expected 1 (")
    assert "1 not started" in state.message
    assert tiny.executed == ["work@left", "work@right"]


def test_a_stage_that_another_process_runs_is_awaited_and_not_repeated(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TWIST", "time.sleep(3)")
    (tiny.root / "stage.py").write_text((tiny.root / "stage.py").read_text() + "# changed\n")
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q", "data"], cwd=tiny.root)
    wait_for(lambda: tiny.executed == ["data"])
    _, names = outcomes(tiny.root, ["data"])
    assert other.wait() == 0
    assert names["data"] in ("Cached", "Restored")
    assert tiny.executed == ["data"]


@pytest.mark.parametrize("lock", ["its own", "none", "another run's"])
def test_a_cold_clone_restores_everything_from_s3(
    tiny: Tiny, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch, lock: str
):
    for key, value in bucket.items():
        monkeypatch.setenv(key, value)
    (tiny.root / ".dvc" / "config").write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n"
        f"    url = s3://store/nfm\n    endpointurl = {bucket['ADDRESS']}\n"
    )
    tiny.git("commit", "--quiet", "--all", "--message", "remote")
    tiny.dvc("push", "--quiet", "--run-cache")
    clone = Tiny(tiny.root.parent / "clone", tiny.runs)
    tiny.git("clone", "--quiet", str(tiny.root), str(clone.root))
    if lock == "none":
        (clone.root / "dvc.lock").unlink()
    if lock == "another run's":
        text = yaml.safe_load((clone.root / "dvc.lock").read_text())
        for name in ("data", "work@left"):  # whose outputs were never sent here
            text["stages"][name]["outs"][0]["md5"] = "0" * 32 + ".dir" * ("@" in name)
        (clone.root / "dvc.lock").write_text(yaml.safe_dump(text))
    wanted, file = ("data", "data.txt") if lock == "its own" else ("work@left", "work/left/file")
    _, names = outcomes(clone.root, [wanted])
    assert set(names) == {"data", wanted}
    assert set(names.values()) <= {"Pulled", "Restored"}
    assert clone.executed == []
    assert (clone.root / file).read_text() == (tiny.root / file).read_text()


def test_what_was_up_to_date_is_sent_by_one_push_and_what_has_run_by_its_own(
    tiny: Tiny, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for key, value in bucket.items():
        monkeypatch.setenv(key, value)
    with (tiny.root / ".dvc" / "config").open("a") as config:
        config.write(
            "[core]\n    remote = store\n['remote \"store\"']\n"
            f"    url = s3://store/once\n    endpointurl = {bucket['ADDRESS']}\n"
        )
    text = (tiny.root / "dvc.yaml").read_text()
    (tiny.root / "dvc.yaml").write_text(text.replace("work/left/file work/right/file", "work/right/file"))
    sent: list[list[str]] = []
    monkeypatch.setattr(flows.stage, "push", lambda names, context: (sent.append(names), push(names, context))[1])
    state, names = outcomes(tiny.root, push=True)
    assert state.is_completed(), state.message
    assert names == {"data": "Cached", "work@left": "Cached", "work@right": "Cached", "report": "Completed"}
    assert sent == [["data", "work@left", "work@right"], ["report"]]
    assert "up to date" in tiny.dvc("push")


def test_an_unreachable_remote_is_tried_again():
    last = ["ERROR: unexpected error - Could not connect to the endpoint URL: http://x/store"]
    assert failure("data", 255, last).name == "Unreachable"
    # The same words from a stage that was running are its own affair: it is not run again.
    last = ["Running stage 'data':", "Connection refused", "ERROR: failed to run, exited with 1"]
    assert failure("data", 255, last).name == "Failed"
    assert failure("data", 255, ["ERROR: Unable to acquire lock. Most likely"]).name == "Busy"


def test_pulled_data_that_was_not_there_counts_as_executed():
    lines = ["Pulling data for stage: 'data'", "Unable to pull data", "Running stage 'data':"]
    assert outcome("data", lines[:1]) == "Pulled"
    assert outcome("data", lines) == "Completed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_flow_ends_its_stages(tiny: Tiny, prefect_server: str, number: signal.Signals):
    alive = tiny.root.parent / "pid"
    twist = f"Path({str(alive)!r}).write_text(str(os.getpid())); time.sleep(120)"
    (tiny.root / "params.yaml").write_text("scale: 3\n")
    params = {"run": {"fan_out": {"tasks": 1, "runner": "threads", "address": None}}}
    program = (
        # Where the tests run in the background Ctrl-C is ignored, and a child would inherit that.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import flows.pipeline as p; p.params_of = lambda *a: {params}; p.main(['--stages', 'work@left'])"
    )
    environment = {
        "TWIST": twist,
        "PREFECT_API_URL": prefect_server,
        "PYTHONPATH": str(ROOT),
    }
    flow_run = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tiny.root,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: alive.exists() and alive.read_text() != "", 60)
    flow_run.send_signal(number)
    assert flow_run.wait(30) != 0
    wait_for(lambda: not _is_alive(int(alive.read_text())), 5)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_lines_come_as_they_are_written_and_stop_ends_grandchildren(tmp_path: Path):
    script = "echo one; sleep 100 & echo $!; wait"
    processes, lines = Processes(), []
    thread = threading.Thread(
        target=lambda: lines.append(processes.run(["sh", "-c", script], tmp_path, os.environ, lines.append))
    )
    thread.start()
    wait_for(lambda: len(lines) == 2)
    grandchild = int(lines[1])
    processes.stop()
    thread.join(10)
    assert lines[0] == "one"
    assert lines[2] == -signal.SIGTERM
    wait_for(lambda: not _is_alive(grandchild) or _is_zombie(grandchild))
    assert processes.run(["true"], tmp_path, os.environ, lines.append) == -signal.SIGTERM


def test_stop_waits_for_what_a_command_that_dies_at_once_has_started(tmp_path: Path):
    """As DVC dies of SIGTERM, and its stage writes a checkpoint."""
    script = "(trap 'sleep 1; echo saved; exit' TERM; echo ready; while :; do sleep 0.1; done) & wait"
    processes, lines = Processes(), []
    thread = threading.Thread(target=lambda: processes.run(["sh", "-c", script], tmp_path, os.environ, lines.append))
    thread.start()
    wait_for(lambda: lines == ["ready"])
    processes.stop()
    thread.join(10)
    assert lines[-1] == "saved"


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_plan_is_dvcs_own_graph(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)  # to which DVC's own names are relative
    with Repo() as repo:
        graph = repo.index.graph
        expected = {stage.addressing: tuple(sorted(up.addressing for up in graph.successors(stage))) for stage in graph}
    plan = Checkout(ROOT).plan()
    assert plan.upstream == expected
    seen: set[str] = set()
    for name, upstream in plan.upstream.items():
        assert seen.issuperset(upstream)
        seen.add(name)


def test_a_stage_stands_for_all_its_items_and_brings_its_upstream(tiny: Tiny):
    assert list(Checkout(tiny.root).plan(["work"]).upstream) == ["data", "work@left", "work@right"]
    with pytest.raises(InputError, match=r"'wrok'.*did you mean 'work'"):
        Checkout(tiny.root).plan(["wrok"])


def test_a_stage_is_unknown_again_once_something_upstream_has_run(tiny: Tiny):
    checkout = Checkout(tiny.root)
    checkout.plan()
    (tiny.root / "data.txt").write_text("changed")
    assert checkout.is_current("work@left")
    checkout.forget("data")
    assert not checkout.is_current("work@left")
    assert not checkout.is_current("data")


def test_stages_under_one_limit_run_one_after_the_other(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(
            concurrency_limit=_limit("accelerator", 1),
        )
    graph = yaml.safe_load((tiny.root / "dvc.yaml").read_text())
    graph["stages"]["work"]["meta"] = {"limits": ["accelerator", "nobody-made-this"]}
    (tiny.root / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    (tiny.root / "params.yaml").write_text("scale: 4\n")
    times = tiny.root.parent / "times"
    write = f"open({str(times)!r}, 'a').write(target.name + chr(10))"
    monkeypatch.setenv("TWIST", f"{write}; time.sleep(1); {write}")
    state, _ = outcomes(tiny.root, ["work"])
    assert state.is_completed(), state.message
    first, second, third, fourth = times.read_text().split()
    assert (first, third) == (second, fourth)
    assert first != third


def _limit(name: str, slots: int) -> Any:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    return GlobalConcurrencyLimitCreate(name=name, limit=slots)


def test_a_workspace_shares_the_cache_and_runs_only_what_differs(tiny: Tiny):
    (tiny.root / "note").write_text("not committed")
    first = workspace(tiny.root, {"scale": 1})
    other = workspace(tiny.root, {"scale": 5})
    assert first != other
    assert (other / "note").read_text() == "not committed"
    _, names = outcomes(first, ["data"])
    assert set(names.values()) <= {"Cached", "Pulled", "Restored"}
    _, names = outcomes(other, ["work@left"])
    assert tiny.executed == ["work@left"]
    assert names["data"] != "Completed"
    assert (other / "work" / "left" / "file").read_text().startswith("left scale: 5")
    assert (tiny.root / "params.yaml").read_text() == "scale: 1\n"
    assert tiny.git("status", "--porcelain").split() == ["??", "note"]


def test_a_workspace_is_found_again_with_its_results_and_the_latest_code(tiny: Tiny):
    folder = workspace(tiny.root, {"scale": 1})
    (folder / "dvc.lock").write_text("its own")
    (tiny.root / "stage.py").write_text("changed")
    (tiny.root / ".dvcignore").unlink()
    assert workspace(tiny.root, {"scale": 1}) == folder
    assert (folder / "stage.py").read_text() == "changed"
    assert not (folder / ".dvcignore").exists()
    assert (folder / "dvc.lock").read_text() == "its own"
    shutil.rmtree(tiny.root / ".workspaces")
    assert workspace(tiny.root, {"scale": 1}) == folder


def test_a_workspace_keeps_relative_remotes_and_user_files_in_place(tiny: Tiny):
    config = "[core]\n    remote = near\n['remote \"near\"']\n    url = ../../store\n"
    (tiny.root / ".dvc" / "config").write_text(config)
    (tiny.root / "images").mkdir()
    (tiny.root / "inputs").mkdir()
    (tiny.root / "inputs" / "inception.pth").write_text("fetched")
    with (tiny.root / ".gitignore").open("a") as file:
        file.write("/inputs/\n")
    (tiny.root / "photos").mkdir()
    (tiny.root / "vae").mkdir()
    nested = {"folder": "images", "images": {"train": "photos", "test": "s3://bucket/photos"}, "autoencoder": "vae"}
    folder = workspace(tiny.root, {"data": nested})
    assert all((folder / name).resolve() == tiny.root / name for name in ("photos", "vae", ".cache/s3"))
    with Repo(str(folder)) as repo:
        assert repo.config["remote"]["near"]["url"] == str(tiny.root.parent / "store")
        assert repo.config["core"]["remote"] == "near"
        assert Path(repo.cache.local_cache_dir) == tiny.root / ".dvc" / "cache"
    assert (folder / "images").resolve() == tiny.root / "images"
    assert (folder / "inputs" / "inception.pth").read_text() == "fetched"


def test_overrides_are_checked_before_anything_runs(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copyfile(ROOT / "nfm" / "recipes" / "digits.yaml", tiny.root / "params.yaml")
    monkeypatch.chdir(tiny.root)
    state = pipeline(overrides={"student.train.stepz": 3}, return_state=True)  # pyright: ignore
    assert state.name == "Refused"
    assert "did you mean 'steps'" in state.message
    assert main(["--set", "student.train.steps=many"]) == 2
    assert "student.train.steps is 'many'" in capsys.readouterr().err
    assert main(["--recipe", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert tiny.executed == []
    assert not (tiny.root / ".workspaces").exists()


def test_an_override_may_be_written_like_a_python_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    params = params_of(ROOT, None, overrides_of(["student.train.lr=1e-4"]))
    assert params["student"]["train"]["lr"] == 1e-4
    assert overrides_of(["seeds=[0, 1]"]) == {"seeds": [0, 1]}


def test_the_report_stage_shows_in_prefect(tmp_path: Path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "summary.json").write_text(
        '{"dataset": "digits", "fd": {"teacher": {"1": [9.0, 10.0]}, "independent": {"1": [28.7]}}}'
    )
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "fd.png").write_bytes(b"a picture")

    @flow
    def show():
        publish(tmp_path, tmp_path, NoParent(), None)

    show()
    with get_client(sync_client=True) as client:
        latest = client.read_latest_artifacts()  # other files publish too, by the same keys
    shown = {artifact.key: str(artifact.data) for artifact in latest}
    assert '{"coupling": "teacher", "1": 9.5}' in shown["fd"]
    encoded = shown["fd-curves"].partition("data:image/png;base64,")[2]
    assert base64.b64decode(encoded) == b"a picture"
    assert (tmp_path / "report" / "index.html").as_uri() in shown["report"]


def test_the_most_urgent_of_those_that_wait_goes_first():
    slots, order, started = Slots(1), [], threading.Event()

    def hold(urgency: int) -> None:
        with slots.taken(urgency):
            order.append(urgency)

    with slots.taken(0):
        threads = [threading.Thread(target=hold, args=(urgency,)) for urgency in (1, 3, 2)]
        for thread in threads:
            thread.start()
        while len(slots._waiting) < 3:
            started.wait(0.01)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [3, 2, 1]


def test_a_stage_is_as_urgent_as_the_chain_that_waits_for_it_is_long():
    upstream = {"data": (), "short": ("data",), "long": ("data",), "longer": ("long",), "end": ("short", "longer")}
    assert Plan(upstream, {}, {}).urgency() == {"data": 3, "long": 2, "longer": 1, "short": 1, "end": 0}


def test_a_folder_of_the_run_cache_that_was_left_empty_stops_no_run(tiny: Tiny):
    """As a full disk or a kill leaves it once DVC has removed the entry that was cut off."""
    (tiny.root / "params.yaml").write_text("scale: 7\n")
    tiny.dvc("repro", "--quiet", "work@left")
    (entry,) = [p for p in (tiny.root / ".dvc/cache/runs").rglob("*") if p.is_file() and "scale: 7" in p.read_text()]
    entry.unlink()
    tiny.git("checkout", "--quiet", "dvc.lock")
    shutil.rmtree(tiny.root / "work")
    tiny.runs.unlink()
    state, names = outcomes(tiny.root, ["work@left"])
    assert state.is_completed(), state.message
    assert names["work@left"] == "Completed"
    assert tiny.executed == ["work@left"]


@pytest.mark.parametrize("left", ["", '{"write": {"/a/pa'])
def test_a_list_of_locks_that_was_cut_off_stops_no_run(tiny: Tiny, left: str):
    (tiny.root / ".dvc" / "tmp").mkdir(exist_ok=True)
    (tiny.root / ".dvc" / "tmp" / "rwlock").write_text(left)
    (tiny.root / "params.yaml").write_text("scale: 8\n")
    state, names = outcomes(tiny.root, ["work@left"])
    assert state.is_completed(), state.message
    assert names["work@left"] == "Completed"


@pytest.mark.parametrize(
    ("uri", "api", "mlflow", "prefect"),
    [
        (
            "sqlite:///mlflow.db",
            None,
            "`make ui`, then http://127.0.0.1:5000/#/experiments/1/runs",
            "`make ui`, then http://127.0.0.1:4200",
        ),
        ("http://user:word@mlflow:80/", "http://prefect:4200/api", "http://mlflow:80", "http://prefect:4200"),
    ],
)
def test_the_last_words_name_the_servers_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, api: str | None, mlflow: str, prefect: str
):
    (tmp_path / "report").mkdir()
    for name in ("headline.txt", "index.html"):
        (tmp_path / "report" / name).write_text("NFM is ahead")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with temporary_settings({PREFECT_API_URL: api}):
        lines = closing(tmp_path).splitlines()
    assert lines[-2:] == [f"MLflow:  {mlflow}", f"Prefect: {prefect}, flow nfm"]
