"""Retraining on handwritten digits in a folder that grows, is poisoned, and whose training is killed.

All ten classes are there from the start, since students of other classes are not compared; but of four of them a few
images only, until the rest comes. The stages are the project's own, joined into two commands to spare their start.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from flows.retrain import main, retrain
from flows.seen import MARK, last_seen, update_imports
from nfm.artifacts import sha256
from nfm.config import read_mapping, with_overrides
from nfm.errors import InputError
from nfm.promotion import record
from nfm.promotion.watch import list_data
from nfm.registry.client import Registry, open_registry
from tests.command import nfm
from tests.conftest import ROOT, shell
from tests.test_flows import wait_for
from tests.tiny import TINY

pytestmark = pytest.mark.timeout(900)

GRAPH = """\
stages:
  prepare:
    cmd: python stage.py prepare
    params: [data]
    deps: [stage.py]
    outs: [artifacts/data]
    metrics: [metrics/prepare.json]
  report:
    cmd: python stage.py train
    params: [features, student]
    deps: [stage.py, artifacts/data]
    outs: [artifacts/features, artifacts/reference, artifacts/coupling, artifacts/student, artifacts/runs]
    metrics: [metrics/features.json]
"""
STAGE = """\
import os, sys, time
from pathlib import Path
from nfm.config import load_params
from nfm.stages import couple, features, prepare, reference, student
with open(os.environ["RUNS"], "a") as file:
    file.write(sys.argv[1] + chr(10))
root, params = Path.cwd(), load_params(Path("params.yaml"))
if sys.argv[1] == "prepare":
    prepare.prepare(root, params)
else:
    features.features(root, params)
    if os.environ.get("HANG"):
        Path(os.environ["HANG"]).write_text("training")
        time.sleep(600)
    reference.reference(root, params)
    couple.couple(root, params, "independent", 0)
    student.student(root, params, "independent", 0)
"""
FOLDER = {"kind": "folder", "folder": "images", "image_size": 8, "channels": 1, "filter": "box", "version": None}
PARAMS = {
    **TINY,
    "data": {**FOLDER, "test_fraction": 0.3, "limit": None, "flips": False, "validation": None, "seed": 0},
    "couplings": ["independent"],
    "features.train.steps": 200,
    "features.train.batch": 64,
    "student.train.steps": 300,
    "student.train.batch": 64,
    "student.width": 48,
    "student.head_size": 24,
    "student.depth": 2,
    "run.checkpoint_every": 0,
    "promote.coupling": "independent",
    "promote.nfe": [4],
    "promote.evaluations": 4,
    "promote.samples": 150,
    "promote.guards.accuracy_drop": 0.1,
}
IGNORED = [
    *("artifacts", "metrics", "images", "mlflow.db*", "mlartifacts"),
    *(".workspaces", ".checkpoints", ".cache", ".retrained.json", ".promotions.lock", "promotions.jsonl"),
]
NAME = "nfm-folder"
FEW = 4  # images at first of each of the last four classes


@dataclass(frozen=True)
class Project:
    """A project whose images lie in a folder; `runs` lists what was executed."""

    root: Path
    runs: Path

    @property
    def executed(self) -> Counter[str]:
        return Counter(self.runs.read_text().split() if self.runs.exists() else [])

    @property
    def registry(self) -> Registry:
        return open_registry(self.root)

    @property
    def aliases(self) -> dict[str, int]:
        return {alias: version.number for version in self.registry.versions(NAME) for alias in version.aliases}

    @property
    def workspaces(self) -> set[str]:
        return {f".workspaces/{path.name}" for path in (self.root / ".workspaces").iterdir() if path.is_dir()}

    def workspace_of(self, alias: str) -> str:
        return self.registry.find(NAME, alias).tags["workspace"]

    def command(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, *arguments]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def write_images(folder: Path, rows: slice) -> None:
    """Writes images of each class as PNG: those of the last four that come first are few."""
    images, target = load_digits(return_X_y=True)
    for label in range(10):
        mine = [i for i in range(len(target)) if target[i] == label]
        chosen = mine if label < 6 else mine[rows]
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for i in chosen:
            pixels = np.round(images[i] * 255 / 16).astype(np.uint8).reshape(8, 8)
            if not (path := folder / str(label) / f"{i}.png").exists():
                Image.fromarray(pixels).save(path)


def shuffle_labels(folder: Path) -> None:
    files = sorted(folder.glob("*/*.png"))
    labels = np.random.default_rng(0).permutation([path.parent.name for path in files])
    for path, label in zip(files, labels, strict=True):
        path.rename(folder / label / path.name)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Any:
    base = tmp_path_factory.mktemp("retrain")
    project = Project(base / "project", base / "runs")
    project.root.mkdir()
    files = {"dvc.yaml": GRAPH, "stage.py": STAGE}
    params = with_overrides(read_mapping(ROOT / "params.yaml"), PARAMS)
    files["params.yaml"] = yaml.safe_dump(params, sort_keys=False)
    files[".gitignore"] = "".join(f"/{name}\n" for name in IGNORED)
    for name, text in files.items():
        (project.root / name).write_text(text)
    write_images(project.root / "images", slice(FEW))
    shell(["git", "init", "--quiet"], project.root)
    shell([sys.executable, "-m", "dvc", "init", "--quiet"], project.root)
    shell(["git", "add", "--all"], project.root)
    shell(["git", "commit", "--quiet", "--message", "project"], project.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        patch.setenv("NFM_TRACKER", "none")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.root}/mlflow.db")
        patch.setenv("PREFECT_API_URL", prefect_server)
        patch.setenv("RUNS", str(project.runs))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield project


def ran(project: Project, **overrides: Any) -> Any:
    return retrain(overrides=overrides or None, return_state=True)  # pyright: ignore


def test_the_first_retraining_publishes_the_first_champion(project: Project):
    state = ran(project)
    assert (state.name, state.is_completed()) == ("First champion", True), state.message
    assert project.aliases == {"champion": 1}
    assert project.executed == {"prepare": 1, "train": 1}
    tags = project.registry.find(NAME, "champion").tags
    assert json.loads(tags["evidence"])["accuracy"] > 0.5
    student = project.root / tags["workspace"] / "artifacts" / "student" / "independent-0" / "student.safetensors"
    assert tags["weights.sha256"] == sha256(student)


def test_without_new_data_nothing_is_trained_and_torch_not_even_imported(project: Project):
    mark = (project.root / MARK).read_text()
    code = "import sys; sys.modules['torch'] = sys.modules['mlflow'] = None; from flows.retrain import main; main([])"
    process = project.command("-c", code)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "No new data: No new data since" in said
    assert project.executed == {"prepare": 1, "train": 1}
    assert (project.root / MARK).read_text() == mark


def test_a_retraining_stops_where_the_data_have_drifted_further_than_allowed(project: Project, monkeypatch, capsys):
    write_images(project.root / "images", slice(None))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the process is the tests' own
    assert main(["--set", "promote.drift=1e-6"]) == 1
    assert "above promote.drift = 1e-06" in capsys.readouterr().err
    assert project.executed == {"prepare": 2, "train": 1}
    assert project.workspaces == {project.workspace_of("champion")}


def test_a_bad_override_is_one_sentence_before_anything_runs(project: Project, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for override, words in {"promote.drfit=1": "did you mean 'drift'", "promote.drift": "expected KEY=VALUE"}.items():
        assert main(["--set", override]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_killed_in_the_middle_the_next_retraining_goes_on_and_promotes_what_is_better(project: Project):
    hangs = project.root.parent / "hangs"
    before = last_seen(project.root)
    process = project.command("-m", "flows.retrain", HANG=str(hangs))
    wait_for(hangs.exists, 300)
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGKILL)
    process.wait()
    assert (last_seen(project.root), project.aliases) == (before, {"champion": 1})
    state = ran(project)
    assert (state.name, state.is_completed()) == ("Promoted", True), state.message
    assert "times that of version 1, and p = " in state.message
    assert project.aliases == {"champion": 2, "previous": 1}
    # Prepared once, for the run that was stopped; trained once more after the kill.
    assert project.executed == {"prepare": 2, "train": 3}
    assert ran(project).name == "No new data"


def test_poisoned_data_are_refused_with_numbers_and_the_champion_stays(project: Project):
    served = project.registry.weights(project.registry.find(NAME, "champion")).read_bytes()
    shuffle_labels(project.root / "images")
    state = ran(project)
    assert (state.name, state.is_completed()) == ("Not promoted", True), state.message
    assert "the classifier's accuracy on held-out images falls from" in state.message
    assert project.aliases == {"champion": 2, "previous": 1, "challenger": 3}
    assert project.registry.weights(project.registry.find(NAME, "champion")).read_bytes() == served
    first, promoted, refused = record.read(project.root)
    assert [line["action"] for line in (first, promoted, refused)] == ["first", "promoted", "refused"]
    assert promoted["figures"]["test"]["p"] < 0.05
    failed = [
        [guard["name"] for guard in line["figures"]["guards"] if not guard["passed"]] for line in (promoted, refused)
    ]
    assert failed[0] == []
    assert "features" in failed[1]  # shuffled labels leave FD much as it was: it does not look at them
    assert ran(project).name == "No new data"
    assert project.workspaces == {project.workspace_of(alias) for alias in project.aliases}


def test_a_rollback_and_a_promotion_by_hand_follow_the_same_rules(project: Project, monkeypatch, capsys):
    assert nfm(monkeypatch, "rollback") == 0
    assert project.aliases == {"champion": 1, "challenger": 3}
    assert nfm(monkeypatch, "promote", "2") == 0
    assert "promoted: version 2 is promoted: its FD at NFE 4 is" in capsys.readouterr().out
    assert project.aliases == {"champion": 2, "previous": 1}
    assert nfm(monkeypatch, "promote", "3") == 1
    assert "refused: version 3 is refused" in capsys.readouterr().out
    assert nfm(monkeypatch, "promote", "9") == 2
    assert "has no version or alias '9'" in capsys.readouterr().err
    actions = [line["action"] for line in record.read(project.root)]
    assert actions == ["first", "promoted", "refused", "rolled back", "promoted", "refused"]
    tags = project.registry.find(NAME, "2").tags
    assert sum(key.startswith("promotion.") for key in tags) == 2


def test_the_record_is_kept_with_the_run_that_made_a_version(project: Project):
    import mlflow

    registry = project.registry
    client = mlflow.MlflowClient(registry.uri)
    run = client.create_run(client.create_experiment("notes", (project.root / "mlartifacts").as_uri()))
    version = replace(registry.find(NAME, "2"), run_id=run.info.run_id)
    assert registry.attach(version, "promotions/a.json", {"action": "promoted"})
    assert registry.attach(version, "promotions/b.json", {"action": "refused"})
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "promotions")}
    assert kept == {"promotions/a.json", "promotions/b.json"}
    assert not registry.attach(replace(version, run_id="0" * 32), "x.json", {})
    assert not registry.attach(replace(version, run_id=None), "x.json", {})


def test_imported_images_are_brought_up_to_date_before_anybody_looks(project: Project, tmp_path: Path):
    source, places = tmp_path / "source", {"data.folder": "brought"}
    source.mkdir()
    (source / "1.png").write_text("1")
    shell([sys.executable, "-m", "dvc", "import-url", "--quiet", str(source), "brought"], project.root)
    assert update_imports(project.root, {"data.train": "images", "data.test": "s3://store/x"}) == []
    (source / "2.png").write_text("2")
    assert list_data(places, project.root).count == 1
    assert update_imports(project.root, places) == ["brought.dvc"]
    assert list_data(places, project.root).count == 2
    shutil.rmtree(source)
    with pytest.raises(InputError, match=r"brought\.dvc cannot be updated: .*source"):
        update_imports(project.root, places)
