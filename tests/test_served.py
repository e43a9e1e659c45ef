"""Inputs, models, promotion, trace and restore where MLflow is a server: nothing is read past its interface."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.release import published
from nfm.config import read_mapping, with_overrides
from nfm.promotion import record
from nfm.registry.client import open_registry
from nfm.registry.history import open_history
from nfm.tracker import record_of
from tests.command import nfm
from tests.conftest import ROOT, shell
from tests.servers import mlflow_server_in

NAME = "nfm-digits"
STUDENT = "artifacts/student/teacher-0/student.safetensors"
GRAPH = """\
stages:
  prepare:
    cmd: mkdir -p artifacts/data/train && cp manifest.json artifacts/data/train
    deps: [manifest.json]
    outs: [artifacts/data/train]
  student:
    matrix:
      item: [teacher-0]
    cmd: python stage.py
    params: [student.width]
    deps: [stage.py, artifacts/data/train/manifest.json]
    outs: ["artifacts/student/${item.item}", "artifacts/runs/student@${item.item}.json"]
"""
STAGE = f"""\
import sys
from pathlib import Path
from nfm.config import load_params
from nfm.stages.run import stage_run
sys.path.insert(0, {str(ROOT)!r})
from tests.students import save_random_student
root, params = Path.cwd(), load_params(Path("params.yaml"))
with stage_run("student@teacher-0", root, params, sections={{"student": params.student}}) as run:
    width = params.student.width
    run.tracker.model(save_random_student(root / {STUDENT!r}, width=width, head_size=width // 2))
"""


@dataclass(frozen=True)
class Project:
    """A project that trains students of some width in a second; `server` is the folder of MLflow's server."""

    root: Path
    server: Path

    def train(self, width: int) -> tuple[str, bytes]:
        """Trains and publishes a student; returns its run and its bytes."""
        params = with_overrides(read_mapping(ROOT / "params.yaml"), {"student.width": width, "student.head_size": 8})
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        shell(["git", "add", "--all"], self.root)
        shell(["git", "commit", "--quiet", "--allow-empty", "--message", f"width {width}"], self.root)
        shell([sys.executable, "-m", "dvc", "repro", "--quiet"], self.root)
        published(self.root, self.root, params, "teacher-0")
        return record_of(self.root, "student@teacher-0")["run_id"], (self.root / STUDENT).read_bytes()

    @property
    def aliases(self) -> dict[str, int]:
        versions = open_registry(self.root).versions(NAME)
        return {alias: version.number for version in versions for alias in version.aliases}


@pytest.fixture
def project(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    root, server = tmp_path / "project", tmp_path / "server"
    for folder in (root, server):
        folder.mkdir()
    files = {"dvc.yaml": GRAPH, "stage.py": STAGE, ".gitignore": "/artifacts\n/.cache\n/.workspaces\n"}
    files["manifest.json"] = json.dumps({"dataset": "digits", "classes": ["0", "1", "2"]})
    for name, text in files.items():
        (root / name).write_text(text)
    (server / "mlflow.db").write_bytes(database.read_bytes())
    shell(["git", "init", "--quiet"], root)
    shell([sys.executable, "-m", "dvc", "init", "--quiet"], root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("NFM_TRACKER", "mlflow")
    # The module flows.restore is found where the tests are, the project has none.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with mlflow_server_in(server) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield Project(root, server)


def test_a_student_is_published_promoted_traced_and_restored_over_http(project: Project, monkeypatch, capfd):
    (first, old), (second, new) = project.train(16), project.train(32)
    assert project.aliases == {"champion": 1}

    assert nfm(monkeypatch, "promote", "2", "--force", "--reason", "it is wider") == 0
    assert project.aliases == {"champion": 2, "previous": 1}
    [entry] = record.read(project.root)
    history = open_history(project.root)
    run = history.get(second)
    assert run is not None
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["prepare"]
    assert run.inputs == (("digits-train", lock["outs"][0]["md5"]),)
    [kept] = [name for name in (project.server / "mlartifacts").rglob("promotions/*.json") if second in name.parts]
    assert json.loads(kept.read_text()) == entry

    assert nfm(monkeypatch, "rollback") == 0
    assert project.aliases == {"champion": 1}
    registry = open_registry(project.root)
    assert registry.weights(registry.find(NAME, "champion")).read_bytes() == old

    capfd.readouterr()
    assert nfm(monkeypatch, "trace", f"models:/{NAME}@champion", "--json") == 0
    [chain] = json.loads(capfd.readouterr().out)
    assert chain["mlflow_run"] == first
    assert chain["model_versions"] == [f"{NAME} version 1 (champion)"]
    assert chain["artifacts"] == "restorable: 2 files in the cache"

    assert nfm(monkeypatch, "restore", first) == 0
    restored = project.root / ".workspaces" / f"restored-{first[:12]}"
    assert (restored / STUDENT).read_bytes() == old
    assert read_mapping(restored / "params.yaml")["student"]["width"] == 16
    assert (project.root / STUDENT).read_bytes() == new
    # Only the server has written: no database of the project's own.
    assert not list(project.root.glob("ml*"))
