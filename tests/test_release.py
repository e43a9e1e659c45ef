"""Which student a flow run publishes, and when it publishes none."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from prefect.states import Completed, Failed

import flows.release
from flows.release import chosen, release
from nfm.artifacts import sha256
from nfm.registry.client import open_registry
from nfm.registry.facts import TAG
from nfm.tracking import open_parent, open_tracker
from tests.students import save_random_student

PARAMS = {"data": {"kind": "digits"}, "couplings": ["independent", "teacher"], "seeds": [2, 1]}
CACHED, RUN = Completed(name="Cached"), Completed(name="Completed")
STATES = {"student@independent-1": RUN, "student@teacher-1": RUN, "report": RUN}


@pytest.fixture
def project(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose student the stage has just made, below a flow run."""
    monkeypatch.setenv("NFM_TRACKER", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(flows.release, "get_run_logger", lambda: logging.getLogger("release"))
    shutil.copyfile(database, tmp_path / "mlflow.db")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "item"),
    [
        ({}, "teacher-1"),
        ({"couplings": ["minibatch-ot", "independent"]}, "minibatch-ot-1"),
        ({"promote": {"coupling": "independent", "seed": 2}}, "independent-2"),
        ({"promote": {"coupling": "semidiscrete-ot", "seed": 0}}, "teacher-1"),
    ],
)
def test_the_student_that_stands_for_a_run_is_promotes_or_the_teachers_or_the_first(change: dict, item: str):
    assert chosen({**PARAMS, **change}) == item


@pytest.mark.parametrize(
    ("states", "kind", "tracker"),
    [
        (dict.fromkeys(STATES, CACHED), "digits", "mlflow"),
        ({**STATES, "student@teacher-1": Failed()}, "digits", "mlflow"),
        ({**STATES, "report": Failed()}, "digits", "mlflow"),
        ({"student@teacher-1": RUN}, "digits", "mlflow"),
        (STATES, "latents", "mlflow"),
        (STATES, "digits", "jsonl"),
    ],
    ids=["all cached", "student failed", "report failed", "no report", "latents", "another tracker"],
)
def test_a_run_that_has_nothing_to_publish_asks_no_registry(
    project: Path, monkeypatch: pytest.MonkeyPatch, states: dict, kind: str, tracker: str
):
    def asked(*_: object) -> str:
        raise AssertionError("was published")

    monkeypatch.setattr(flows.release, "published", asked)
    monkeypatch.setenv("NFM_TRACKER", tracker)
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "data": {"kind": kind}}))
    release(project, project, states)


def test_a_version_says_where_its_student_is_from(project: Path, caplog: pytest.LogCaptureFixture):
    weights = save_random_student(project / "artifacts" / "student" / "teacher-1" / "student.safetensors")
    manifest = project / "artifacts" / "data" / "train" / "manifest.json"
    metrics = project / "metrics" / "evaluate" / "teacher-1.json"
    record = project / "artifacts" / "runs" / "student@teacher-1.json"
    for path in (manifest, metrics, record):
        path.parent.mkdir(parents=True)
    parent = open_parent(project, "quick-fox", {"prefect.flow_run_id": "flow 1"})
    with pytest.MonkeyPatch.context() as patch:
        for key, value in parent.environment().items():
            patch.setenv(key, value)
        with open_tracker("student@teacher-1", project) as tracker:
            tracker.tags({"git.commit": "c0ffee"})
            tracker.model(weights)
    manifest.write_text("{}")
    metrics.write_text('{"yardstick": {"fd": "fd_digits_1k"}, "fd_digits_1k": {"euler-2": 1.424}}')
    record.write_text(json.dumps({"run_id": tracker.run_id, "key": "abc"}))
    with caplog.at_level("INFO", "release"):
        release(project, project, {**STATES, "student@teacher-1": CACHED})
    assert "student teacher-1 is nfm-digits version 1, champion" in caplog.text
    version = open_registry(project).find("nfm-digits", "champion")
    assert TAG in version.tags
    assert {key: value for key, value in version.tags.items() if key != TAG} == {
        "weights.sha256": sha256(weights),
        "dvc.stage": "student@teacher-1",
        "dvc.stage_hash": "abc",
        "data.hash": sha256(manifest),
        "git.commit": "c0ffee",
        "coupling": "teacher",
        "seed": "1",
        "run_id": tracker.run_id,
        "prefect.flow_run": "flow 1",
    }
    found = open_registry(project)._client.get_model_version("nfm-digits", "1")
    assert found.description.endswith("fd_digits_1k: 1.42 (euler-2).")


def test_a_registry_that_is_away_is_a_warning(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (project / "artifacts" / "student" / "teacher-1").mkdir(parents=True)
    save_random_student(project / "artifacts" / "student" / "teacher-1" / "student.safetensors")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    release(project, project, STATES)
    assert "the student teacher-1 was not published: MLflow at http://127.0.0.1:9 does not" in caplog.text
