"""The command line: each stage on tiny settings, and what a user's mistake looks like."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import yaml

from nfm.artifacts import load_tensors
from nfm.build import measure
from nfm.config import read_mapping, with_overrides
from nfm.stages.settled import discard_settled
from nfm.student.velocity import SiT
from nfm.teacher.autoregressive import AutoregressiveBlock
from tests.command import nfm
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
WITH_ONE_STEP = {"couplings": [*TINY["couplings"], "inverse-regression"], "one_step": ["inverse-regression"]}
INCEPTION = {"source": "weights.pth", "sha256": "0" * 64}


def write_params(folder, **overrides):
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, **overrides})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose stages have run one by one, by the command line alone."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NFM_TRACKER", "jsonl")
        write_params(folder, **WITH_ONE_STEP, **{"coupling.teacher.draws": 2})
        for command in (
            ["prepare"],
            ["features"],
            ["reference"],
            ["teacher"],
            ["couple", "--coupling", "semidiscrete-ot"],
            ["couple", "--coupling", "teacher"],
            ["couple", "--coupling", "inverse-regression"],
            ["student", "--coupling", "semidiscrete-ot"],
            ["student", "--coupling", "teacher"],
            ["student", "--coupling", "inverse-regression"],
            ["evaluate", "--coupling", "semidiscrete-ot"],
            ["evaluate", "--coupling", "teacher"],
            ["evaluate", "--coupling", "inverse-regression"],
            ["evaluate", "--teacher"],
            ["report"],
        ):
            assert nfm(patch, *command) == 0, command
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it to break."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NFM_TRACKER", "none")
    return folder


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


def refused(project, monkeypatch, capsys, *arguments):
    """Runs a command that must end with status 2 and one sentence, and change no file; returns the sentence."""
    before = files(project)
    assert nfm(monkeypatch, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    sentences = [line for line in lines if line.startswith("nfm: ")]
    assert len(sentences) == 1, lines
    assert files(project) == before
    return sentences[0]


def test_stages_run_without_a_tracker_server_and_leave_json_lines(trained):
    logs = list((trained / "logs").glob("student@teacher-0-*/log.jsonl"))
    kinds = [json.loads(line)["kind"] for line in logs[0].read_text().splitlines()]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert {"params", "tags", "metrics"} <= set(kinds)


def test_two_students_of_one_seed_start_from_the_same_noise_and_labels(trained):
    kept = [
        load_tensors(trained / "artifacts" / "evaluate" / f"{name}-0" / "samples.safetensors")[0]["paths"][0]
        for name in ("teacher", "semidiscrete-ot")
    ]
    assert kept[0].equal(kept[1])


def test_a_one_step_student_has_the_teachers_pairs_and_is_measured_at_one_step(trained):
    pairs, flow = ({}, {})
    for name, found in (("teacher-0", flow), ("inverse-regression-0", pairs)):
        folder = trained / "artifacts" / "coupling" / name
        found |= {p.name: p.read_bytes() for p in folder.glob("noise-*")}
    assert pairs
    assert pairs == flow
    summary = json.loads((trained / "results" / "summary.json").read_text())
    assert {c: sorted(v) for c, v in summary["fd"].items()} == {
        "semidiscrete-ot": ["1", "5"],
        "teacher": ["1", "5"],
        "inverse-regression": ["1"],
    }
    assert set(summary["curvature"]) == {"semidiscrete-ot", "teacher"}
    weights = [
        (trained / "artifacts" / "student" / n / "student.safetensors").read_bytes()
        for n in ("teacher-0", "inverse-regression-0")
    ]
    assert weights[0] != weights[1]
    page = (trained / "report" / "index.html").read_text()
    assert "inverse regression" in page
    assert "best of two couplings" in page or "best of 2 couplings" in page or "is best with" in page


def test_a_stage_leaves_its_record_and_no_checkpoint(trained):
    record = json.loads((trained / "artifacts" / "runs" / "teacher@0.json").read_text())
    assert record["stage"] == "teacher@0"
    assert record["seconds"] > 0
    assert record["peak_memory_mb"] > 50
    assert not list((trained / ".checkpoints").rglob("*.safetensors"))


def test_under_dvc_a_checkpoint_stays_until_dvc_has_the_outputs(project, monkeypatch):
    """Killed while DVC hashes what a stage has made, the stage runs again: without an update."""
    monkeypatch.setenv("DVC_STAGE", "teacher@0")
    monkeypatch.setenv("NFM_TRACKER", "jsonl")
    record, weights = (
        project / "artifacts" / name for name in ("runs/teacher@0.json", "teacher/0/teacher.safetensors")
    )
    before = weights.read_bytes()
    shutil.rmtree(project / "logs")
    assert nfm(monkeypatch, "teacher") == 0
    (log,) = (project / "logs").glob("teacher@0-*/log.jsonl")
    assert "grad_norm" in log.read_text()
    record.unlink()
    weights.unlink()
    shutil.rmtree(project / "logs")
    assert nfm(monkeypatch, "teacher") == 0
    (log,) = (project / "logs").glob("teacher@0-*/log.jsonl")
    assert "grad_norm" not in log.read_text()
    assert weights.read_bytes() == before

    lock = {"outs": [{"path": "artifacts/runs/teacher@0.json", "md5": "0" * 32}]}
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"teacher@0": lock}}))
    discard_settled(project)
    assert list((project / ".checkpoints").rglob("*.safetensors"))  # of other outputs
    lock["outs"][0]["md5"] = hashlib.md5(record.read_bytes()).hexdigest()
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"teacher@0": lock}}))
    discard_settled(project)
    assert not list((project / ".checkpoints").iterdir())


def test_a_second_run_of_a_stage_makes_the_same_bytes(project, monkeypatch):
    path = project / "artifacts" / "student" / "teacher-0" / "student.safetensors"
    before = path.read_bytes()
    path.unlink()
    assert nfm(monkeypatch, "student", "--coupling", "teacher") == 0
    assert path.read_bytes() == before


def test_online_draws_train_a_student_from_a_copy_of_the_teacher(project, monkeypatch):
    write_params(project, **{"coupling.teacher.draws": "online"})
    assert nfm(monkeypatch, "couple", "--coupling", "teacher") == 0
    folder = project / "artifacts" / "coupling" / "teacher-0"
    assert {p.name for p in folder.iterdir()} == {"card.json", "card.png", "coupling.json", "teacher.safetensors"}
    stored = (project / "artifacts" / "student" / "teacher-0" / "student.safetensors").read_bytes()
    assert nfm(monkeypatch, "student", "--coupling", "teacher") == 0
    assert (project / "artifacts" / "student" / "teacher-0" / "student.safetensors").read_bytes() != stored


def test_an_unconditional_pipeline_runs(project, monkeypatch):
    write_params(project, **{"teacher.conditional": False, "student.conditional": False})
    for command in (["teacher"], ["couple", "--coupling", "teacher"], ["student", "--coupling", "teacher"]):
        assert nfm(monkeypatch, *command) == 0
    assert nfm(monkeypatch, "evaluate", "--coupling", "teacher") == 0
    measured = json.loads((project / "metrics" / "evaluate" / "teacher-0.json").read_text())
    assert "accuracy" not in measured
    assert measured["fd_digits_20"]["euler-1"] > 0


def test_samples_in_bfloat16_and_decoded_in_chunks_are_measured(project, monkeypatch):
    dtypes, chunks, solve, decode = set(), set(), SiT.forward, AutoregressiveBlock.decode_step

    def forward(self, *arguments):
        dtypes.add(torch.is_autocast_enabled("cpu"))
        return solve(self, *arguments)

    def step(self, known, *arguments):
        chunks.add(known.shape[1])
        return decode(self, known, *arguments)

    monkeypatch.setattr(SiT, "forward", forward)
    monkeypatch.setattr(AutoregressiveBlock, "decode_step", step)
    write_params(project, **{"evaluate.precision": "bf16", "evaluate.decode": {"chunk": 4, "tolerance": 0.0}})
    for command, file in ((["--coupling", "teacher"], "evaluate/teacher-0"), (["--teacher"], "evaluate-teacher/0")):
        path = project / "metrics" / f"{file}.json"
        exact = json.loads(path.read_text())
        assert nfm(monkeypatch, "evaluate", *command) == 0
        measured = json.loads(path.read_text())
        assert measured["fd_digits_20"] == pytest.approx(exact["fd_digits_20"], rel=0.01)
        assert measured.get("curvature") == exact.get("curvature")
    assert dtypes == {True, False}  # the curvature is the plain network's
    assert chunks == {4, 3}  # of the 7 tokens behind the first


@pytest.mark.parametrize(
    ("changes", "command", "words"),
    [
        ({"student.patch": [3, 8]}, ["student", "--coupling", "teacher"], "student.patch is [3, 8]"),
        ({"teacher.head_size": 24}, ["teacher"], "teacher.head_size is 24"),
        ({}, ["student", "--coupling", "techer"], "did you mean 'teacher'"),
        ({}, ["student", "--coupling", "minibatch-ot"], "coupling.json is missing"),
        ({}, ["student", "--coupling", "teacher", "--seed", "7"], "teacher-7"),
        ({}, ["evaluate"], "either --coupling NAME or --teacher"),
        ({}, ["recipe", "digts"], "did you mean 'digits'"),
        ({}, ["recipe", "digits"], "params.yaml holds changes"),
        (
            {
                "data": {
                    "kind": "mnist",
                    "folder": "x",
                    "image_size": 28,
                    "download": False,
                    "validation": None,
                    "seed": 0,
                }
            },
            ["prepare"],
            "data.folder",
        ),
        ({"evaluate.inception": "weights.pth"}, ["evaluate", "--teacher"], "evaluate.inception"),
        ({"evaluate.inception": INCEPTION}, ["evaluate", "--coupling", "teacher"], "run `python -m nfm fetch`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_in_params_or_options_is_one_sentence(project, monkeypatch, capsys, changes, command, words):
    write_params(project, **changes)
    assert words in refused(project, monkeypatch, capsys, *command)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("artifacts/data/train/images-00000.u8", ["teacher"]),
        ("artifacts/data/test/labels.i64", ["evaluate", "--teacher"]),
        ("artifacts/teacher/0/teacher.safetensors", ["couple", "--coupling", "teacher"]),
        ("artifacts/coupling/teacher-0/noise-00000.f16", ["student", "--coupling", "teacher"]),
        ("artifacts/coupling/semidiscrete-ot-0/potentials.safetensors", ["student", "--coupling", "semidiscrete-ot"]),
        ("artifacts/student/teacher-0/student.safetensors", ["evaluate", "--coupling", "teacher"]),
        ("artifacts/features/features.safetensors", ["evaluate", "--teacher"]),
        ("artifacts/features/features.safetensors", ["reference"]),
        ("artifacts/data/test/labels.i64", ["reference"]),
        ("artifacts/reference/train.safetensors", ["evaluate", "--coupling", "teacher"]),
        ("artifacts/reference/test.safetensors", ["evaluate", "--teacher"]),
        ("metrics/reference.json", ["report"]),
        ("metrics/evaluate/teacher-0.json", ["report"]),
    ],
)
@pytest.mark.parametrize("damage", ["gone", "half", "empty"])
def test_a_damaged_input_is_named(project, monkeypatch, capsys, path, command, damage):
    if "metrics" in path:
        write_params(project, couplings=["semidiscrete-ot", "teacher"])
    file = project / path
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    assert Path(path).name in refused(project, monkeypatch, capsys, *command)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("artifacts/data/train/images-00000.u8", ["student", "--coupling", "teacher"]),
        ("artifacts/data/test/images-00000.u8", ["evaluate", "--teacher"]),
        ("artifacts/teacher/0/teacher.safetensors", ["couple", "--coupling", "teacher"]),
        ("artifacts/coupling/teacher-0/noise-00000.f16", ["student", "--coupling", "teacher"]),
        ("artifacts/reference/test.safetensors", ["evaluate", "--coupling", "teacher"]),
    ],
)
def test_a_flipped_bit_in_an_input_is_named(project, monkeypatch, capsys, path, command):
    content = bytearray((project / path).read_bytes())
    content[-1] ^= 1
    (project / path).write_bytes(content)
    assert Path(path).name in refused(project, monkeypatch, capsys, *command)


@pytest.mark.parametrize("command", [["evaluate", "--coupling", "teacher"], ["evaluate", "--teacher"]], ids=" ".join)
def test_samples_are_the_same_in_any_batch_and_none_is_held_on_to(project, monkeypatch, command):
    """With batches of 4 of 20 samples; the images of one batch are gone when the next but one is made."""
    alive, most, to_uint8 = [], [], measure.to_uint8

    def watched(images):
        array = to_uint8(images).numpy().copy()
        alive.append(weakref.ref(array))
        most.append(sum(len(ref()) for ref in alive if ref() is not None))
        return torch.from_numpy(array)

    path = project / "metrics" / ("evaluate-teacher/0.json" if "--teacher" in command else "evaluate/teacher-0.json")
    whole, pictures = json.loads(path.read_text()), list((project / "artifacts" / "evaluate").rglob("*.safetensors"))
    kept = {picture: load_tensors(picture)[0] for picture in pictures}
    monkeypatch.setattr(measure, "to_uint8", watched)
    write_params(project, **{"run.sample_batch": 4})
    assert nfm(monkeypatch, *command) == 0
    parts = json.loads(path.read_text())
    assert max(most) <= 2 * 2 * 4  # two batches, of the teacher raw and denoised
    for name in ("fd_digits_20", "fd_digits_20_train"):
        # float32 samples, and so now and then a pixel, depend on the batch by roundings.
        assert parts[name] == pytest.approx(whole[name], rel=1e-3)
    for picture in pictures:
        for name, images in load_tensors(picture)[0].items():
            assert (images.float() - kept[picture][name].float()).abs().max() <= 1


@pytest.mark.parametrize(
    ("stage", "word", "value"),
    [
        ("evaluate", "samples", 30),
        ("evaluate", "features", "2048 of Inception"),
        ("evaluate-teacher", "fd", "fd_digits_30"),
        ("reference", "resize", "box"),
        ("reference", "test", 10_000),
    ],
)
def test_a_report_of_figures_that_cannot_be_compared_is_refused(project, monkeypatch, capsys, stage, word, value):
    name = {"evaluate": "evaluate/semidiscrete-ot-0", "evaluate-teacher": "evaluate-teacher/0"}.get(stage, stage)
    path = project / "metrics" / f"{name}.json"
    measured = json.loads(path.read_text())
    before = measured["yardstick"][word]
    measured["yardstick"][word] = value
    path.write_text(json.dumps(measured))
    sentence = refused(project, monkeypatch, capsys, "report")
    assert repr(value) in sentence
    assert repr(before) in sentence
    assert path.name in sentence


def test_a_model_of_other_images_is_refused(project, monkeypatch, capsys):
    folder = {"kind": "folder", "folder": "images", "image_size": 16, "channels": 1, "filter": "box"}
    write_params(
        project,
        data={
            **folder,
            "test_fraction": 0.5,
            "flips": False,
            "limit": None,
            "validation": None,
            "seed": 0,
            "version": None,
        },
    )
    from PIL import Image

    for name in ("a", "b"):
        (project / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (16, 16), i).save(project / "images" / name / f"{i}.png")
    assert nfm(monkeypatch, "prepare") == 0
    capsys.readouterr()
    for command in (["couple", "--coupling", "teacher"], ["evaluate", "--teacher"]):
        assert "(1, 8, 8)" in refused(project, monkeypatch, capsys, *command)
    assert "8 images" not in refused(project, monkeypatch, capsys, "student", "--coupling", "semidiscrete-ot")


def test_a_recipe_replaces_params_that_are_a_recipe(project, monkeypatch, capsys):
    assert nfm(monkeypatch, "recipe", "digits", "--force") == 0
    assert nfm(monkeypatch, "recipe", "digits") == 0
    assert read_mapping(project / "params.yaml")["seeds"] == [0, 1, 2]


def test_nfm_imports_neither_orchestrator_nor_tracker():
    code = (
        "import importlib, pkgutil, sys, nfm\n"
        "for module in pkgutil.walk_packages(nfm.__path__, 'nfm.'):\n"
        "    if module.name != 'nfm.__main__':\n"
        "        importlib.import_module(module.name)\n"
        "print(sorted({'prefect', 'dvc', 'mlflow'} & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_stages_run_where_the_pipeline_packages_are_not_installed(project):
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['prefect', 'dvc', 'mlflow', 'boto3'])\n"  # None: not to be found
        "sys.argv = ['nfm', 'couple', '--coupling', 'independent']\n"
        "from nfm.cli import main\n"
        "main()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, env={"PYTHONPATH": str(ROOT)})
    assert (project / "artifacts" / "coupling" / "independent-0" / "coupling.json").is_file()
    assert list((project / "logs").glob("couple@independent-0-*"))


# Memory

FREED = """
import sys, torch
from nfm.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def resident():
    return int(open("/proc/self/statm").read().split()[1])

tensors = [torch.ones(5 * 2**20) for _ in range(3)]  # 20 MiB each
before = resident()
del tensors
print((before - resident()) / (3 * 5 * 1024))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_for_the_next_tensors():
    given_back = {
        how: float(subprocess.run([sys.executable, "-c", FREED, how], cwd=ROOT, capture_output=True, check=True).stdout)
        for how in ("kept", "by itself")
    }
    assert given_back["kept"] < 0.05
    assert given_back["by itself"] > 0.95
