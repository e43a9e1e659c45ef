"""The stage couple: its shards resume, are shared by processes and told by checksums; its gate loses no work.

This file is also the script of the processes that are killed or launched.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

import nfm.build.draws
from nfm.artifacts import load_tensors, read_json
from nfm.build.coupling import load_coupling
from nfm.build.teacher import make_teacher, save_teacher
from nfm.config import load_params, parse_params, read_mapping, with_overrides
from nfm.coupling.base import Batch, Redraw
from nfm.coupling.shards import Shard, locked, plan_shards
from nfm.coupling.teacher import encode_draws
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.writing import write_splits
from nfm.errors import InputError
from nfm.random import generator_for
from nfm.stages.couple import couple, encode_share
from nfm.stages.student import student
from tests.command import nfm as command

ROOT = Path(__file__).parents[1]
COUNT, DRAWS, SHAPE = 90, 3, (1, 2, 4)
SHARD_BYTES = 2 * DRAWS * 8 * 20  # 20 images: shards of 20, 20, 20, 20 and 10
TEACHER = {"patch": [1, 4], "blocks": 2, "layers": 1, "width": 8, "head_size": 8, "shape": SHAPE, "classes": 2}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As a stage has, so that sums have one order in all processes."""
    monkeypatch.setenv("NFM_TRACKER", "jsonl")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project with small images and a teacher that is no good."""
    folder = tmp_path_factory.mktemp("prepared")
    # Of one grey each, so that the noise of a teacher that is no good has one large eigenvalue.
    images = (
        torch.randint(256, (COUNT, 1, 1, 1), generator=generator_for(0)).to(torch.uint8).expand(-1, *SHAPE).contiguous()
    )
    label = torch.arange(COUNT) % 2
    examples = Examples.of(images, label)
    source = Source("noise", SHAPE, ("a", "b"), examples, examples.subset(torch.arange(2)), "")
    write_splits(folder / "artifacts/data", source, seed=0)
    torch.manual_seed(0)
    teacher = make_teacher(TEACHER)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_teacher(folder / "artifacts/teacher/0/teacher.safetensors", teacher, TEACHER, 0.2)
    return folder


@pytest.fixture
def project(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "project")
    set_params(tmp_path / "project")
    return tmp_path / "project"


def set_params(folder, **changes):
    keys = {"draws": DRAWS, "shard_mb": SHARD_BYTES / 1e6, "gate.allow": True, **changes}
    overrides = {f"coupling.teacher.{key}": value for key, value in keys.items()}
    # Six images a batch: a shard of 20 ends with one of 2.
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {**overrides, "run.sample_batch": 6 * DRAWS})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run(folder):
    couple(folder, load_params(folder / "params.yaml"), "teacher", 0)


def outputs(folder):
    """The contents of all that the stage leaves, by path; without its record, which has the time."""
    files = [*(folder / "artifacts/coupling").rglob("*"), *(folder / "metrics").rglob("*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


def split_of(folder):
    return Split.open(folder / "artifacts/data/train")


def loaded(folder):
    return load_coupling(folder / "artifacts/coupling/teacher-0", split_of(folder), torch.device("cpu"), verify=True)


@pytest.fixture
def encoded(monkeypatch):
    """Rows of the data set as they are encoded in this process."""
    rows = []

    def counted(teacher, data, label, *, first, **options):
        rows.extend(range(first, first + len(data)))
        return encode_draws(teacher, data, label, first=first, **options)

    monkeypatch.setattr(nfm.build.draws, "encode_draws", counted)
    return rows


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The outputs of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(prepared, folder)
    set_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "none")
        patch.setenv("OMP_NUM_THREADS", "1")
        run(folder)
    return folder


def test_the_coupling_is_stored_in_shards_of_the_stated_size_with_a_card(whole):
    folder = whole / "artifacts/coupling/teacher-0"
    settings = json.loads((folder / "coupling.json").read_text())
    assert [entry["count"] for entry in settings["shards"]] == [20, 20, 20, 20, 10]
    assert all((folder / entry["file"]).stat().st_size == entry["bytes"] <= SHARD_BYTES for entry in settings["shards"])
    assert {file.name for file in folder.iterdir()} == {
        *(f"noise-0000{i}.f16" for i in range(5)),
        "card.json",
        "card.png",
        "coupling.json",
    }
    assert "gate" not in settings
    assert not list((whole / ".checkpoints").iterdir())


def test_the_stored_draws_are_those_of_the_seed_and_row_over_sigma(whole):
    split, rows = split_of(whole), torch.arange(COUNT)
    model = nfm.build.draws.load_teacher(whole / "artifacts/teacher/0/teacher.safetensors", torch.device("cpu")).model
    z = encode_draws(model, split.images(rows), split.labels(rows), noise_std=0.2, draws=DRAWS, seed=0)
    sigma = z.double().square().mean().sqrt().item()
    assert json.loads((whole / "metrics/couple/teacher-0.json").read_text())["sigma"] == pytest.approx(sigma, rel=1e-6)
    generator = generator_for(3)
    for _ in range(20):
        noise = loaded(whole).pair(Batch(rows, split.images(rows), None), generator).noise
        nearest = (z / sigma - noise[:, None]).abs().flatten(2).amax(2).amin(1)
        assert nearest.max() < 4e-3  # float16 of numbers up to 8


def test_noise_encoded_in_bf16_is_that_of_fp32_but_for_a_rounding_that_the_card_states(project, whole):
    set_params(project, precision="bf16")
    run(project)
    noise, exact = (
        np.concatenate([np.fromfile(file, np.float16) for file in sorted(folder.rglob("coupling/teacher-0/*.f16"))])
        for folder in (project, whole)
    )
    cards = [json.loads((f / "artifacts/coupling/teacher-0/card.json").read_text()) for f in (project, whole)]
    rounding = (noise - exact).astype(float).std() / cards[0]["sigma"]
    assert 2**-12 < rounding < 2**-6  # bfloat16 rounds by 2**-9 at the most, where a product's numbers are near 1
    assert [card["rounding"] for card in cards] == [pytest.approx(rounding, rel=0.2), 0.0]
    figures = json.loads((project / "metrics/couple/teacher-0.json").read_text())
    assert figures["rounding"] == cards[0]["rounding"]
    assert cards[0]["round_trip"] == pytest.approx(cards[1]["round_trip"], rel=1e-6)  # that of the teacher in float32


def test_online_noise_is_encoded_in_its_own_precision_whatever_is_around_it(project):
    split, rows, noise = split_of(project), torch.arange(COUNT), {}
    batch = Batch(rows, split.images(rows), split.labels(rows))
    for precision in ("fp32", "bf16"):
        set_params(project, draws="online", precision=precision)
        run(project)
        pairs, path = loaded(project), project / "artifacts/coupling/teacher-0/coupling.json"
        noise[precision] = online_noise(project, batch, bf16=precision == "bf16") / read_json(path)["sigma"]
        for around in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=around):
                assert torch.equal(pairs.pair(batch, generator_for(0)).noise, noise[precision])
    assert noise["bf16"].dtype == torch.float32
    assert not torch.equal(noise["bf16"], noise["fp32"])


def online_noise(folder, batch, bf16):
    """The noise that `TeacherOnline` is to encode, by hand."""
    trained = nfm.build.draws.load_teacher(folder / "artifacts/teacher/0/teacher.safetensors", torch.device("cpu"))
    noisy = batch.data + 0.2 * torch.randn(batch.data.shape, generator=generator_for(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return trained.model.encode(noisy, batch.label)[0]


def test_a_killed_run_goes_on_with_the_missing_shards_and_ends_with_the_same_bytes(project, whole, encoded):
    assert script(project, "killed").wait(120) == -signal.SIGKILL
    assert not (project / "artifacts/coupling").exists()
    (work,) = (project / ".checkpoints").iterdir()
    finished = sorted(file.name for file in work.glob("noise-*.json"))
    assert finished == ["noise-00000.json", "noise-00001.json"]
    assert list(work.glob(".noise-00002*"))  # what was being written
    run(project)
    assert encoded == list(range(40, COUNT))
    assert outputs(project) == outputs(whole)
    assert not list((project / ".checkpoints").iterdir())


def test_shares_encoded_by_themselves_in_any_order_give_the_same_bytes(project, whole, encoded):
    params = load_params(project / "params.yaml")
    for index in (2, 0, 1):
        encode_share(project, params, "teacher", 0, index, 3)
    assert sorted(encoded) == list(range(COUNT))
    encode_share(project, params, "teacher", 0, 0, 2)
    assert len(encoded) == COUNT  # however many shares: what is there is not encoded again
    run(project)
    assert len(encoded) == COUNT
    assert outputs(project) == outputs(whole)


def test_the_stage_goes_on_from_some_shares_and_mends_what_was_damaged(project, whole, encoded, capsys):
    params = load_params(project / "params.yaml")
    encode_share(project, params, "teacher", 0, 1, 2)
    assert capsys.readouterr().out.splitlines() == [
        "shard 1 of 5: images up to 40 are encoded",
        "shard 3 of 5: images up to 80 are encoded",
    ]
    (file,) = (project / ".checkpoints").rglob("noise-00003.f16")
    file.write_bytes(file.read_bytes()[:-1])
    encode_share(project, params, "teacher", 0, 1, 2)
    assert encoded == [*range(20, 40), *range(60, 80), *range(60, 80)]
    run(project)
    assert sorted(encoded) == sorted([*range(COUNT), *range(60, 80)])
    assert outputs(project) == outputs(whole)


def test_a_shard_that_another_process_is_at_is_waited_for_and_not_encoded_twice(project, whole, encoded):
    """As after a kill of the flow alone, whose shares run on beside those of the next flow run."""
    params = load_params(project / "params.yaml")
    encode_share(project, params, "teacher", 0, 0, 5)
    (work,) = (project / ".checkpoints").iterdir()
    sidecar = (work / "noise-00000.json").read_bytes()
    (work / "noise-00000.json").unlink()
    with locked(work, Shard(0, range(20), 20, DRAWS)):
        child = script(project, "share")
        assert child.stderr.readline() == "at shard 0\n"
        (work / "noise-00000.json").write_bytes(sidecar)
    lines = child.communicate(timeout=120)[1].splitlines()
    assert json.loads(lines[-1]) == list(range(20, COUNT))
    run(project)
    assert encoded == list(range(20))
    assert outputs(project) == outputs(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--share", "1/2"], "goes with a coupling of the kind 'teacher', 'minibatch-ot' is 'minibatch-ot'"),
        (["--share", "2/2"], "--share is '2/2', expected I/N with I from 0 to N - 1"),
        (["--share", "-1/2"], "--share is '-1/2', expected"),
        (["--share", "half"], "--share is 'half', expected"),
    ],
)
def test_a_share_that_cannot_be_is_refused_in_a_sentence(project, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(project)
    assert command(monkeypatch, "couple", "--coupling", "minibatch-ot", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_of_the_noise_no_more_than_two_batches_are_held(project, monkeypatch):
    """So that memory does not grow with the number of images."""
    alive, held = [], []

    def watched(*arguments, **options):
        array = encode_draws(*arguments, **options).numpy().copy()
        alive.append(weakref.ref(array))
        held.append(sum(ref() is not None for ref in alive))
        return torch.from_numpy(array)

    monkeypatch.setattr(nfm.build.draws, "encode_draws", watched)
    run(project)
    assert len(held) == 18  # of six images, four to a shard of 20
    assert max(held) == 2


def test_a_finished_shard_that_was_damaged_is_encoded_again(project, whole, encoded):
    script(project, "killed").wait(120)
    (file,) = (project / ".checkpoints").rglob("noise-00001.f16")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    run(project)
    assert encoded == list(range(20, COUNT))
    assert outputs(project) == outputs(whole)


def test_another_teacher_starts_afresh(project, encoded):
    script(project, "killed").wait(120)
    path = project / "artifacts/teacher/0/teacher.safetensors"
    save_teacher(path, make_teacher(TEACHER), TEACHER, 0.2)
    run(project)
    assert encoded == list(range(COUNT))


def test_two_processes_share_the_shards_and_write_what_one_writes(project, whole):
    launched = script(project, "launched", launch=True)
    assert launched.wait(240) == 0, launched.stderr.read()
    assert outputs(project) == outputs(whole)
    encoded = {file.name: json.loads(file.read_text()) for file in project.glob("encoded-*.json")}
    assert encoded == {
        "encoded-0.json": [*range(20), *range(40, 60), *range(80, 90)],
        "encoded-1.json": [*range(20, 40), *range(60, 80)],
    }


def launched(folder, config):
    """The stage by its command on a machine whose accelerate is set up for two processes."""
    config.mkdir()
    text = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n"
    (config / "accelerate").mkdir()
    (config / "accelerate" / "default_config.yaml").write_text(text + "main_process_port: 0\n")
    environment = os.environ | {"HF_HOME": str(config), "NFM_TRACKER": "none", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "nfm", "couple", "--coupling", "teacher", "--seed", "0"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_gate_of_several_processes_fails_in_one_sentence_too(project, whole, tmp_path):
    set_params(project, **{"gate.allow": False})
    refused = launched(project, tmp_path / "once")
    said = refused.communicate(timeout=200)[1]
    assert refused.returncode == 2, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("nfm: the teacher's coupling is outside coupling.teacher.gate: ")
    assert said.count("nfm: ") == 1
    set_params(project)
    allowed = launched(project, tmp_path / "again")
    said = allowed.communicate(timeout=200)[1]
    assert allowed.returncode == 0, said
    assert outputs(project).keys() == outputs(whole).keys()


def test_sigterm_ends_all_processes_of_a_launch(project, tmp_path):
    parent = launched(project, tmp_path / "once")
    children = []
    while not children:
        time.sleep(0.2)
        assert parent.poll() is None
        # The launcher's own children.
        children = [grandchild for child in psutil.Process(parent.pid).children() for grandchild in child.children()]
    parent.terminate()
    assert parent.wait(60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_an_error_in_one_process_ends_all_and_the_work_of_all_is_kept(project, whole, encoded):
    launched = script(project, "broken", launch=True)
    assert launched.wait(240) != 0
    assert "disk on fire" in launched.stderr.read()
    assert not (project / "artifacts/coupling").exists()
    run(project)
    assert 60 in encoded  # the shard that broke
    assert len(encoded) < COUNT
    assert outputs(project) == outputs(whole)


def script(folder, mode, launch=False):
    # Without --multi_gpu, accelerate starts one process on a machine that has no GPU.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NFM_TRACKER": "none", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *(launcher if launch else []), __file__, mode, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_gate_fails_with_its_worst_line_and_keeps_card_and_work(project, encoded):
    set_params(project, **{"gate.allow": False})
    with pytest.raises(InputError) as raised:
        run(project)
    sentence = str(raised.value)
    for words in (
        "outside coupling.teacher.gate: ",
        ", expected at ",
        "teacher",
        "coupling.teacher.gate.allow to true",
    ):
        assert words in sentence
    (card,) = (project / ".checkpoints").rglob("card.json")
    assert str(card) in sentence
    assert card.with_suffix(".png").is_file()
    assert outputs(project) == {}
    # What the tracker has of the failed run.
    (log,) = (project / "logs").iterdir()
    assert (log / "card.json").read_bytes() == card.read_bytes()
    assert (log / "images" / "card.png").is_file()
    lines = [json.loads(line) for line in (log / "log.jsonl").read_text().splitlines()]
    assert any("c2st" in line for line in lines)
    assert lines[-1]["status"] == "FAILED"
    # The way out that the sentence names: nothing is encoded again, and what was outside is on record.
    encoded.clear()
    set_params(project)
    run(project)
    assert encoded == []
    verdict = json.loads((project / "metrics/couple/teacher-0.json").read_text())["gate"]
    assert verdict["passed"] is False
    assert verdict["line"] in sentence


def test_a_gate_that_the_card_passes_changes_no_byte_of_the_coupling(project, whole, capsys):
    wide = {"c2st": 1.0, "eigenvalues": [1e-6, 1e6], "mean_drift": 99.0, "variance_drift": 99.0, "round_trip": 1e-3}
    set_params(project, **{f"gate.{key}": value for key, value in wide.items()}, **{"gate.allow": False})
    run(project)
    assert "outside" not in capsys.readouterr().err
    mine, theirs = outputs(project), outputs(whole)
    assert json.loads(mine.pop("metrics/couple/teacher-0.json"))["gate"]["passed"] is True
    theirs.pop("metrics/couple/teacher-0.json")
    assert mine == theirs  # so that students stay up to date


def test_online_draws_store_no_more_than_the_card_looks_at(project, monkeypatch, encoded):
    monkeypatch.setattr("nfm.coupling.card.ROWS", 30)
    set_params(project, draws="online", **{"gate.allow": False})
    with pytest.raises(InputError, match="outside"):
        run(project)
    assert encoded == list(range(COUNT))  # sigma is that of all images
    (work,) = (project / ".checkpoints").iterdir()
    stored = sum(file.stat().st_size for file in work.glob("*.f16"))
    assert stored == 2 * 8 * 30
    set_params(project, draws="online")
    run(project)
    folder = project / "artifacts/coupling/teacher-0"
    assert {file.name for file in folder.iterdir()} == {"card.json", "card.png", "coupling.json", "teacher.safetensors"}
    z = torch.cat(list(all_online(project)))
    settings = json.loads((folder / "coupling.json").read_text())
    assert settings["sigma"] == pytest.approx(z.double().square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("draws", [DRAWS, "online"])
def test_a_student_learns_of_the_noise_to_be_drawn_anew(project, draws):
    set_params(project, draws=draws, **{"redraw.share": 0.5, "redraw.below": 0.2})
    run(project)
    assert loaded(project).redraw == Redraw(0.5, 0.2)


def test_a_student_learns_otherwise_where_noise_is_drawn_anew(project):
    weights = []
    for share in (0.0, 0.0, 1.0):
        set_params(project, **{"redraw.share": share})
        params = read_mapping(project / "params.yaml")
        changes = {"student.patch": [1, 4], "student.train.steps": 2, "student.train.batch": 16, "student.width": 32}
        params = parse_params(with_overrides(params, changes), "params.yaml")
        couple(project, params, "teacher", 0)
        student(project, params, "teacher", 0)
        weights.append(load_tensors(project / "artifacts/student/teacher-0/student.safetensors")[0])
    first, same, other = ({k: v.tolist() for k, v in w.items()} for w in weights)
    assert first == same != other


def test_online_draws_encode_no_more_images_than_measure_the_coupling(project, monkeypatch, encoded):
    monkeypatch.setattr("nfm.build.draws.ONLINE_IMAGES", 50)
    set_params(project, draws="online")
    run(project)
    assert encoded == list(range(50))
    folder = project / "artifacts/coupling/teacher-0"
    card, settings = (json.loads((folder / name).read_text()) for name in ("card.json", "coupling.json"))
    z = torch.cat(list(all_online(project, 50)))
    assert card["images"] == card["looked_at"]["images"] == 50
    assert settings["images"] == COUNT
    assert settings["sigma"] == pytest.approx(z.double().square().mean().sqrt().item(), rel=1e-6)


def all_online(folder, count=COUNT):
    split, rows = split_of(folder), torch.arange(count)
    path = folder / "artifacts/teacher/0/teacher.safetensors"
    model = nfm.build.draws.load_teacher(path, torch.device("cpu")).model
    draws = nfm.build.draws.ONLINE_DRAWS
    yield encode_draws(model, split.images(rows), split.labels(rows), noise_std=0.2, draws=draws, seed=0)


def test_a_fitted_coupling_has_its_marginal_error_on_its_card(project):
    params = with_overrides(read_mapping(project / "params.yaml"), {"coupling.semidiscrete-ot.steps": 5})
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    couple(project, load_params(project / "params.yaml"), "semidiscrete-ot", 0)
    card = json.loads((project / "artifacts/coupling/semidiscrete-ot-0/card.json").read_text())
    figures = json.loads((project / "metrics/couple/semidiscrete-ot-0.json").read_text())
    assert card == {"format": "nfm-card-1", "kind": "semidiscrete-ot", "images": COUNT, **figures}
    assert 0 < card["sampling_error"] < card["marginal_error"]
    assert list((project / "logs").glob("couple@semidiscrete-ot-0-*/card.json"))


@pytest.mark.parametrize("name", ["noise-00000.f16", "noise-00004.f16"])
def test_a_flipped_bit_in_a_stored_shard_is_one_sentence(project, whole, name):
    shutil.copytree(whole / "artifacts/coupling", project / "artifacts/coupling")
    loaded(project)
    path = project / "artifacts/coupling/teacher-0" / name
    content = bytearray(path.read_bytes())
    content[7] ^= 16
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} has another SHA-256 .*run the stage couple again"):
        loaded(project)


def test_noise_that_float16_cannot_hold_is_one_sentence(project):
    broken = make_teacher(TEACHER)
    broken.blocks[0].head.bias.data.fill_(-20.0)
    save_teacher(project / "artifacts/teacher/0/teacher.safetensors", broken, TEACHER, 0.2)
    with pytest.raises(InputError, match=r"images 0 and on is not finite in float16.*lower lr"):
        run(project)
    assert outputs(project) == {}


def test_shards_cover_the_images_in_order_and_store_as_told():
    for count in (1, 19, 20, 21, 90):
        shards = plan_shards(count, DRAWS, 8, stored=(25, 2), shard_bytes=SHARD_BYTES)
        assert [row for shard in shards for row in shard.rows] == list(range(count))
        assert [shard.number for shard in shards] == list(range(len(shards)))
        assert sum(shard.images for shard in shards) == min(count, 25)
    assert len(plan_shards(5, DRAWS, 8, stored=(5, DRAWS), shard_bytes=1)) == 5  # an image at least


def told(folder, shard):
    """Locks a shard, and says before it that it will."""
    print(f"at shard {shard.number}", file=sys.stderr, flush=True)
    return locked(folder, shard)


def main(mode, folder):
    """Runs the stage in a process that dies, shares or fails, by `mode`; "share" tells what it has encoded."""
    rank, rows = os.environ.get("RANK", "0"), []

    def encode(teacher, data, label, *, first, **options):
        if mode == "killed" and first >= 46:  # in the third shard, after its first batch
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "broken" and first >= 60:
            raise OSError("disk on fire")
        rows.extend(range(first, first + len(data)))
        return encode_draws(teacher, data, label, first=first, **options)

    nfm.build.draws.encode_draws = encode
    if mode == "share":
        nfm.build.draws.locked = told
        encode_share(folder, load_params(folder / "params.yaml"), "teacher", 0, 0, 1)
        print(json.dumps(rows), file=sys.stderr)
        return
    run(folder)
    (folder / f"encoded-{rank}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
