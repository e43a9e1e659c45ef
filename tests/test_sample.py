"""`python -m nfm sample` and `export`: what they write, and that bad input leaves nothing behind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nfm.artifacts import sha256
from nfm.build.student import load_student
from nfm.registry.client import open_registry
from nfm.serving.requests import Request
from nfm.serving.sampler import open_sampler
from tests.command import nfm
from tests.students import save_random_student

STUDENT = "artifacts/student/teacher-0/student.safetensors"
CHAMPION = "models:/nfm-digits@champion"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A project with a student of DVC's, published, and one without classes."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copyfile(database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        (folder / STUDENT).parent.mkdir(parents=True)
        save_random_student(folder / STUDENT)
        save_random_student(folder / "unconditional.safetensors", classes=None)
        (folder / "artifacts" / "runs").mkdir()
        record = {"run_id": "123", "key": "abc", "stage": "student@teacher-0"}
        (folder / "artifacts" / "runs" / "student@teacher-0.json").write_text(json.dumps(record))
        tags = {"git.commit": "c0ffee"}
        open_registry(folder).publish(folder / STUDENT, "nfm-digits", run_id=None, tags=tags, description="A student.")
    return folder


@pytest.fixture
def project(published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(published)
    for name in ("grid.png", "student.pt2"):
        (published / name).unlink(missing_ok=True)
    return published


def cells(path: Path, columns: int, rows: int) -> np.ndarray:
    """The grid's images, one value a pixel, with shape (rows, columns, 8, 8): each was enlarged fourfold, 2 apart."""
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (34 * rows - 2, 34 * columns - 2, 4)
    cut = [[sheet[34 * r : 34 * r + 32 : 4, 34 * c : 34 * c + 32 : 4, 0] for c in range(columns)] for r in range(rows)]
    return np.array(cut)


def test_a_grid_shows_the_seeds_in_a_row(project: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = ["--label", "2", "--count", "5", "--nfe", "3", "--solver", "heun", "--seed", "40", "--guidance", "2"]
    assert nfm(monkeypatch, "sample", "--model", CHAMPION, "--out", "grid.png", *chosen) == 0
    sampler = open_sampler(project / STUDENT, {})
    shown = cells(project / "grid.png", 3, 2).reshape(6, 8, 8)
    for i in range(5):
        assert (shown[i] == sampler.image(Request(40 + i, 3, "heun", 2.0, 2)).numpy()[0]).all()
    said = json.loads(Image.open(project / "grid.png").info["nfm"])
    digest = sha256(project / STUDENT)
    whose = {"model": "nfm-digits", "version": "1", "weights.sha256": digest, "git.commit": "c0ffee"}
    asked = {"label": 2, "count": 5, "nfe": 3, "solver": "heun", "seed": 40, "guidance": 2.0}
    assert said == whose | asked


def test_a_published_student_and_its_file_give_the_same_images(project: Path, monkeypatch: pytest.MonkeyPatch):
    assert nfm(monkeypatch, "sample", "--model", "models:/nfm-digits/1", "--out", "grid.png") == 0
    assert nfm(monkeypatch, "sample", "--model", STUDENT, "--out", "folder/grid.png") == 0
    assert (cells(Path("grid.png"), 8, 8) == cells(Path("folder/grid.png"), 8, 8)).all()
    said = json.loads(Image.open("folder/grid.png").info["nfm"])
    assert (said["run_id"], said["dvc.stage_hash"], said["weights.sha256"]) == ("123", "abc", sha256(Path(STUDENT)))


BAD = {
    "label beyond the classes": ({"--label": "3"}, "label is 3, expected 0 to 2"),
    "label without classes": (
        {"--model": "unconditional.safetensors", "--label": "0"},
        "this student knows no classes; leave the label out",
    ),
    "nfe 0": ({"--nfe": "0"}, "nfe is 0, expected 1 to 256"),
    "nfe huge": ({"--nfe": "1000000"}, "nfe is 1000000, expected 1 to 256"),
    "solver": ({"--solver": "rk4"}, "solver is 'rk4', expected euler, heun or midpoint"),
    "nfe of the solver": ({"--solver": "heun", "--nfe": "2"}, "expected one of 1, 3, 5 and so on with heun"),
    "seed": ({"--seed": "-1"}, "seed is -1"),
    "count 0": ({"--count": "0"}, "--count is 0, expected 1 to 4096"),
    "alias": ({"--model": "models:/nfm-digits@best"}, "no version or alias 'best'; there are 1, champion"),
    "number": ({"--model": "models:/nfm-digits/7"}, "no version or alias '7'; there are 1, champion"),
    "model": ({"--model": "models:/nfm-mnist@champion"}, "there is no model 'nfm-mnist'"),
    "half an address": ({"--model": "models:/nfm-digits"}, "expected models:/NAME@ALIAS, models:/NAME/NUMBER or"),
    "file missing": ({"--model": "none.safetensors"}, "none.safetensors is missing"),
    "file damaged": ({"--model": "damaged.safetensors"}, "damaged.safetensors is corrupt"),
    "no student": ({"--model": "artifacts/runs/student@teacher-0.json"}, "is corrupt"),
    "ending": ({"--out": "grid.jpg"}, "--out is grid.jpg, expected a file whose name ends in .png"),
    "a folder": ({"--out": "folder.png"}, "--out is folder.png, which is a folder"),
    "no place": ({"--out": "unconditional.safetensors/grid.png"}, "cannot be written"),
}


@pytest.mark.parametrize(("given", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_writes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict, sentence: str
):
    (project / "folder.png").mkdir(exist_ok=True)
    (project / "damaged.safetensors").write_bytes((project / STUDENT).read_bytes()[:-7])
    before = sorted(project.rglob("*"))
    options = {"--model": CHAMPION, "--out": "grid.png", "--count": "2", **given}
    assert nfm(monkeypatch, "sample", *[text for pair in options.items() for text in pair]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert said.startswith("nfm: ")
    assert "\n" not in said
    made = {path for path in project.rglob("*") if path not in before and ".cache" not in path.parts}
    assert not made


def test_a_registry_that_is_away_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert nfm(monkeypatch, "sample", "--model", CHAMPION, "--out", "grid.png") == 2
    assert "MLflow at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert nfm(monkeypatch, "sample", "--model", STUDENT, "--out", "grid.png") == 0  # a file needs no registry


def test_an_exported_student_gives_the_velocity_on_any_batch(project: Path, monkeypatch: pytest.MonkeyPatch):
    assert nfm(monkeypatch, "export", "--model", STUDENT, "--out", "student.pt2") == 0
    files = {"nfm.json": ""}
    program = torch.export.load("student.pt2", extra_files=files).module()
    assert json.loads(files["nfm.json"])["weights.sha256"] == sha256(Path(STUDENT))
    network, generator = load_student(project / STUDENT, torch.device("cpu")).model, torch.Generator().manual_seed(0)
    x, t = torch.randn(5, 1, 8, 8, generator=generator), torch.rand(5, generator=generator)
    label = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(program(x, t, label), network(x, t, label), rtol=0, atol=1e-4)
    none = torch.full((5,), 3)  # the number of classes: no label
    torch.testing.assert_close(program(x, t, none), network(x, t, None), rtol=0, atol=1e-4)
    assert os.listdir(project).count("student.pt2") == 1
