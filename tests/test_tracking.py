"""What is reported arrives, whatever happens to the stage or to the tracking server."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import nfm.finished_run
import nfm.tracking
from nfm.artifacts import sha256
from nfm.errors import InputError
from nfm.finished_run import FinishedRun, write_finished_run
from nfm.lineage import read_by
from nfm.tracker import JsonLines, NullTracker, record_of
from nfm.tracking import MLflowTracker, interface_of, open_parent, open_tracker
from tests.command import nfm as command
from tests.servers import mlflow_server_in
from tests.students import save_random_student


@pytest.fixture
def project(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("NFM_TRACKER", "mlflow")
    return tmp_path


def client_of(project: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    (log,) = folder.rglob("log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["jsonl", "mlflow"])
def test_a_failing_stage_keeps_what_it_reported(project: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NFM_TRACKER", kind)
    tracker = open_tracker("teacher@0", project)

    def stage() -> None:
        with tracker:
            tracker.params({"teacher": {"train": {"lr": 3.0e-3}}})
            tracker.metrics({"loss": 2.5}, 7)
            tracker.metrics({"loss": float("nan")}, 8)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    if kind == "jsonl":
        _, params, first, second, end = lines_of(project / "logs")
        assert params["teacher.train.lr"] == 3.0e-3
        assert (first["loss"], first["step"], second["loss"]) == (2.5, 7, "nan")
        assert end["status"] == "FAILED"
    else:
        run = client_of(project).get_run(tracker.run_id)
        assert run.info.status == "FAILED"
        assert run.data.params == {"teacher.train.lr": "0.003"}
        first, second = client_of(project).get_metric_history(tracker.run_id, "loss")
        assert (first.value, first.step, second.step) == (2.5, 7, 8)
        assert np.isnan(second.value)


def test_thousands_of_metrics_arrive_with_their_steps(project: Path):
    with open_tracker("student@teacher-0", project) as tracker:
        for step in range(2500):
            tracker.metrics({"loss": float(step)}, step)
    history = client_of(project).get_metric_history(tracker.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(s, float(s)) for s in range(2500)]
    assert client_of(project).get_run(tracker.run_id).info.status == "FINISHED"


def test_an_outage_of_the_server_costs_neither_the_training_nor_the_metrics(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from mlflow.exceptions import MlflowException

    with open_tracker("teacher@0", project) as tracker:
        assert isinstance(tracker, MLflowTracker)
        send = tracker._client.log_batch

        def fail(*_: Any, **__: Any) -> None:
            raise MlflowException("no route to host")

        monkeypatch.setattr(tracker._client, "log_batch", fail)
        for step in range(1500):
            tracker.metrics({"loss": 1.0}, step)
        monkeypatch.setattr(tracker._client, "log_batch", send)
    assert len(client_of(project).get_metric_history(tracker.run_id, "loss")) == 1500
    assert capsys.readouterr().err.count("no route to host") == 1


def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NFM_TRACKER", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 does not answer"):
        open_tracker("teacher@0", Path())


def test_only_the_first_of_several_processes_tracks(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    assert isinstance(open_tracker("teacher@0", project), NullTracker)
    assert client_of(project).get_experiment_by_name("nfm") is None


def test_the_tracker_is_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NFM_TRACKER", "none")
    assert type(open_tracker("prepare", tmp_path)) is NullTracker
    monkeypatch.setenv("NFM_TRACKER", "jsonl")
    assert type(open_tracker("prepare", tmp_path)) is JsonLines
    monkeypatch.setenv("NFM_TRACKER", "wandb")
    with pytest.raises(InputError, match="NFM_TRACKER is 'wandb'"):
        open_tracker("prepare", tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "mlflow"])
def test_images_are_kept_under_the_given_name(project: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NFM_TRACKER", kind)
    (project / "grid-17.png").write_bytes(b"picture")
    with open_tracker("evaluate@teacher-0", project) as tracker:
        tracker.image(project / "grid-17.png", "samples.png")
        tracker.artifact(project / "grid-17.png", "more/copy.bin")
    found = [p for p in project.rglob("images/samples.png") if p.read_bytes() == b"picture"]
    assert len(found) == 1
    assert len(list(project.rglob("more/copy.bin"))) == 1


def test_stages_are_children_of_the_flow_run_whatever_run_is_in_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    parent = open_parent(project, "quick-fox", {"recipe": "digits"})
    for key, value in parent.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.run_id or "")  # which mlflow itself would resume
    with open_tracker("teacher@0", project) as tracker:
        assert tracker.run_id != parent.run_id
    killed = open_tracker("student@teacher-0", project)  # and never ended
    parent.note("teacher@0", "Completed", tracker.run_id)
    parent.note("prepare", "Restored", None)
    parent.close("FAILED")
    client = client_of(project)
    assert client.get_run(tracker.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert client.get_run(killed.run_id).info.status == "KILLED"
    run = client.get_run(parent.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["made_by.teacher/0"] == tracker.run_id
    assert run.data.tags["outcome.prepare"] == "Restored"
    assert run.data.tags["recipe"] == "digits"


MANIFEST = {"dataset": "digits", "count": 7, "shape": [1, 8, 8], "classes": ["0", "1"]}
PARAMS = {
    "teacher": {"noise_std": 0.3},
    "coupling": {"teacher": {"kind": "teacher", "draws": 4}, "independent": {"kind": "independent"}},
}


def evaluated(project: Path, coupling: str, seed: int, fd: dict[int, float]) -> str:
    """Reports an evaluation as the stage does; returns its run's id."""
    figures = {"yardstick": {"fd": "fd_digits_20", "samples": 20}, "accuracy": {f"euler-{nfe}": 1.0 for nfe in fd}}
    path = project / "metrics" / "evaluate" / f"{coupling}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures))
    with open_tracker(f"evaluate@{coupling}-{seed}", project) as tracker:
        tracker.tags({"stage": "evaluate", "coupling": coupling, "seed": seed})
        for nfe, value in fd.items():
            tracker.metrics({"fd": value}, nfe)
    return tracker.run_id or ""


@pytest.fixture
def laid_out(project: Path) -> Path:
    """A project with params, data and what DVC has written of the data."""
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    for split in ("train", "test"):
        folder = project / "artifacts" / "data" / split
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    outs = [{"path": "artifacts/data/test", "md5": "a" * 32 + ".dir"}]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare": {"outs": outs}}}))
    return project


def test_an_evaluation_has_the_axes_the_inputs_and_the_words_that_its_readers_need(
    laid_out: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DVC_STAGE", "evaluate@teacher-0")
    client = client_of(laid_out)
    run = client.get_run(evaluated(laid_out, "teacher", 0, {1: 3.5, 31: 1.5}))
    told = {"coupling": "teacher", "seed": "0", "noise_std": "0.3", "draws": "4", "nfe": "1 31"}
    assert run.data.params == told
    assert run.data.metrics == {"fd": 1.5, "at_nfe/fd_01": 3.5, "at_nfe/fd_31": 1.5}
    assert "coupling teacher, seed 0" in run.data.tags["mlflow.note.content"]
    assert json.loads(run.data.tags["yardstick"])["samples"] == 20
    (one,) = run.inputs.dataset_inputs
    assert (one.dataset.name, one.dataset.digest) == ("digits-test", "a" * 32 + ".dir")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["metrics.json", "params.yaml"]
    experiment = client.get_experiment(run.info.experiment_id)
    assert "the curves overlay" in experiment.tags["mlflow.note.content"]
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    plain = client.get_run(evaluated(laid_out, "independent", 0, {1: 7.0}))
    assert (plain.data.params["noise_std"], plain.data.params["draws"]) == ("0.0", "online")


def test_without_dvc_an_inputs_digest_is_that_of_what_lies_there(laid_out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (found,) = read_by("evaluate@teacher-0", laid_out)
    assert found.digest == sha256(laid_out / "artifacts/data/test/manifest.json")[:36]
    assert read_by("evaluate@teacher-0", laid_out / "nowhere") == []
    assert [one.name for one in read_by("student@teacher-0", laid_out)] == ["digits-train"]
    (laid_out / "artifacts/coupling/teacher-0").mkdir(parents=True)
    (laid_out / "artifacts/coupling/teacher-0/coupling.json").write_text("{}")
    assert [one.name for one in read_by("student@teacher-0", laid_out)] == ["digits-train", "coupling-teacher-0"]


def test_evaluations_are_compared_by_id_or_name_on_one_yardstick(
    laid_out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ids = [evaluated(laid_out, "independent", 0, {1: 7.0, 5: 2.0}), evaluated(laid_out, "teacher", 0, {1: 3.5, 5: 1.5})]
    monkeypatch.chdir(laid_out)
    assert command(monkeypatch, "compare", ids[0], "evaluate@teacher-0", "--format", "csv") == 0
    first, *_, last = capsys.readouterr().out.splitlines()[1:]
    assert ",independent,fd_digits_20,1,1,7.0," in first
    assert ",teacher,fd_digits_20,5,1,1.5," in last
    client_of(laid_out).set_tag(ids[0], "yardstick", json.dumps({"fd": "fd_digits_20", "samples": 50}))
    assert command(monkeypatch, "compare", *ids) == 2
    assert "was measured with samples 20" in capsys.readouterr().err
    client_of(laid_out).delete_tag(ids[0], "yardstick")
    assert command(monkeypatch, "compare", *ids) == 2
    assert "does not say what it was measured with" in capsys.readouterr().err


def test_a_run_of_another_project_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    client = client_of(project)
    other = client.create_run(client.create_experiment("theirs"), run_name="their-run").info.run_id
    monkeypatch.chdir(project)
    for words in (["compare", other], ["compare", "their-run"], ["trace", other]):
        assert command(monkeypatch, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"run {other} (their-run)" in line
        assert "was made by another project" in line
    assert command(monkeypatch, "compare", "experiment:theirs") == 2
    assert "holds no flow run that has come to its report" in capsys.readouterr().err


def test_a_server_that_is_down_is_one_sentence_of_compare_and_trace(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for word in ("compare", "trace"):
        assert command(monkeypatch, word, "a" * 32) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("nfm: MLflow at http://127.0.0.1:9 does not answer as expected")


@pytest.fixture
def served(project: Path) -> Iterator[str]:
    """The project's database behind a server, at the address that is given."""
    with mlflow_server_in(project) as address:
        yield address


def idle_flow_run(project: Path) -> str:
    """Returns what MLflow tells of a flow run that ran nothing, without what differs between two of them."""
    before = int(time.time() * 1000)
    parent = open_parent(project, "quick-fox", {"recipe": "digits"})
    for number in range(60):  # two tags each, more than one request takes
        parent.note(f"student@teacher-{number}", "Cached", f"run {number}")
    parent.close("FINISHED")
    run = client_of(project).get_run(parent.run_id)
    assert run.data.tags["made_by.student/teacher-59"] == "run 59"
    assert before <= run.info.start_time <= run.info.end_time <= time.time() * 1000
    told = json.dumps(run.to_dictionary(), sort_keys=True, indent=2)
    for value in (run.info.run_id, run.info.start_time, run.info.end_time):
        told = told.replace(str(value), "varies")
    return told


@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_flow_run_that_ran_nothing_is_written_as_by_mlflow_itself_but_without_it(
    project: Path, kind: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    uri = request.getfixturevalue("served") if kind == "server" else f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with monkeypatch.context() as slow:
        slow.setattr(nfm.finished_run, "SCHEMA", "tables of another version")
        slow.setenv("MLFLOW_TRACKING_INSECURE_TLS", "false")  # a setting that only the client knows
        by_client = idle_flow_run(project)
    with monkeypatch.context() as quick:
        quick.setattr(nfm.tracking, "_client", None)  # fails if called
        assert idle_flow_run(project) == by_client


def test_a_store_that_does_not_answer_is_left_to_the_client(tmp_path: Path):
    run = FinishedRun("nfm", "quick-fox", {}, "FINISHED", 0, 1)
    (tmp_path / "text.db").write_text("no database")
    for uri in (
        "http://127.0.0.1:9",
        f"sqlite:///{tmp_path}/none.db",
        f"sqlite:///{tmp_path}/text.db",
        "postgresql://",
    ):
        assert write_finished_run(uri, run) is None
    assert not (tmp_path / "none.db").exists()


def test_a_student_is_logged_as_a_model_of_its_run_without_pickle(project: Path):
    weights = save_random_student(project / "student.safetensors")
    with open_tracker("student@teacher-0", project) as tracker:
        tracker.tags({"git.commit": "c0ffee"})
        tracker.model(weights)
    [output] = client_of(project).get_run(tracker.run_id).outputs.model_outputs
    model = client_of(project).get_logged_model(output.model_id)
    assert (model.name, model.source_run_id, str(model.status)) == ("student", tracker.run_id, "READY")
    assert model.tags.items() >= {"git.commit": "c0ffee", "weights.sha256": sha256(weights)}.items()
    files = list((project / "mlartifacts").rglob("*"))
    assert any(file.name == "student.safetensors" for file in files)
    assert not [file for file in files if file.suffix in (".pkl", ".pickle", ".pth", ".pt")]


def test_a_student_of_latents_is_not_logged_and_fails_no_stage(project: Path):
    weights = save_random_student(project / "student.safetensors", shape=[4, 8, 8])
    with open_tracker("student@teacher-0", project) as tracker:
        tracker.model(weights)
    assert client_of(project).get_run(tracker.run_id).outputs is None or not list(project.rglob("MLmodel"))


def test_a_record_that_is_absent_or_broken_is_empty(tmp_path: Path):
    assert record_of(tmp_path, "teacher@0") == {}
    path = tmp_path / "artifacts" / "runs" / "teacher@0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert record_of(tmp_path, "teacher@0") == {}
    path.write_text('{"run_id": "abc"}')
    assert record_of(tmp_path, "teacher@0") == {"run_id": "abc"}


def test_importing_loads_neither_mlflow_nor_prefect_nor_dvc():
    modules = "nfm.tracking, nfm.tracker, nfm.serving.answer, nfm.serving.entry, nfm.registry.client"
    program = f"import sys, {modules};print({{'mlflow', 'prefect', 'dvc'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "set()", answer.stderr


def test_the_history_loads_no_torch_which_a_flow_run_that_runs_nothing_would_pay_for():
    modules = "nfm.tracking, nfm.registry.history, flows.neighbours, flows.report"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr


def test_addresses_that_people_are_shown_have_no_credentials():
    assert interface_of("https://user:secret@host.example:5000/mlflow/") == "https://host.example:5000/mlflow"
    assert interface_of("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert interface_of("sqlite:////srv/mlflow.db") is None
