"""Trainings by several processes, whole (DDP) and divided (FSDP2): they learn what one process learns.

Run as a script this file is one of the processes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from nfm.cli import app as run_command
from nfm.config import read_mapping, with_overrides
from nfm.coupling.base import Batch, Pairs, Whole
from nfm.coupling.minibatch_ot import MinibatchOT, assign
from nfm.errors import InputError
from nfm.student.loss import student_loss
from nfm.student.velocity import SiT
from nfm.teacher.loss import teacher_loss
from nfm.teacher.tarflow import TarFlow
from nfm.train import loop
from nfm.train.launch import open_processes, process_count
from nfm.train.loop import Trained, train
from nfm.train.plan import Plan
from nfm.train.pulse import Pulse
from nfm.train.sharding import sharding_wanted
from nfm.train.update import Piece
from tests.command import nfm
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
COUNT, STEPS, HALF = 32, 6, 3
TRANSPORT = MinibatchOT(across_classes=True, whole_batch=True)
WAYS = {"ddp": "false", "fsdp2": "true"}  # accelerate's environment variable for it


def teacher() -> nn.Module:
    return TarFlow((1, 4, 4), (1, 4), blocks=2, layers=2, width=16, head_size=8, classes=10)


def student() -> nn.Module:
    return SiT((1, 4, 4), (1, 4), depth=2, width=16, head_size=8, classes=10)


def teacher_rows(model: nn.Module, piece: Piece, generator: torch.Generator) -> Tensor:
    x, label = images()
    return teacher_loss(model, x[piece.index], label[piece.index], generator, noise_std=0.2, label_drop=0.1)


def student_rows(model: nn.Module, piece: Piece, generator: torch.Generator) -> Tensor:
    """Of pairs by transport over the batch of all processes."""
    x, label = images()

    def read(rows: Tensor) -> Batch:
        return Batch(rows, x[rows], label[rows])

    batch = replace(read(piece.index), whole=Whole(lambda: read(piece.rows), piece.part, piece.seed, piece.step))
    pairs = TRANSPORT.pair(batch, generator)
    times = {"time_mean": -0.2, "time_std": 1.0}
    return student_loss(model, pairs.data, pairs.noise, pairs.label, generator, **times, label_drop=0.1)


LEARNT = {"teacher": (teacher, teacher_rows), "student": (student, student_rows)}


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(COUNT, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(COUNT) % 10


def learn(
    name: str,
    folder: Path | None = None,
    steps: int = STEPS,
    compile: bool = False,
    told: Callable[[], object] = lambda: None,
) -> tuple[Trained, list[float]]:
    """Trains in float64, so that sums in another order differ by some 1e-16; calls `told` behind every update."""
    make, loss = LEARNT[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    curve: list[float] = []

    def report(metrics: dict[str, float], _: int) -> None:
        curve.append(metrics["loss"])
        told()

    # A forward pass of two images: what is drawn for it does not depend on the number of processes.
    plan = Plan(steps, 8, 1e-2, (0.9, 0.95), 1e-4, 2, 1.0, 1.0, 0.9, "no", 3, compile, 2, HALF, 1)
    how = {"count": COUNT, "plan": plan, "seed": 0, "folder": folder, "key": "k", "name": name}
    trained = train(model, loss, report=report, **how)
    return trained, curve


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def launched(
    count: int, folder: Path, mode: str, *arguments: str, options: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Launches this script by torchrun, as accelerate's launcher does, and waits for it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    # Else processes that start again may meet the addresses of those that have died.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *options]
    command += [__file__, mode, str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def processes(count: int, folder: Path, mode: str, *arguments: str) -> None:
    done = launched(count, folder, mode, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def one():
    return {name: learn(name) for name in LEARNT}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """What two processes have learnt in each way, and the checkpoints that they left half-way."""
    folder = tmp_path_factory.mktemp("two")
    processes(2, folder, "learn")
    return folder


def cases():
    return [(way, name) for way in WAYS for name in LEARNT]


@pytest.mark.parametrize(("way", "name"), cases())
def test_two_processes_learn_what_one_learns(one, by_two, way, name):
    trained, curve = one[name]
    for rank in (0, 1):
        found = torch.load(by_two / f"{way}-{name}-{rank}.pt")
        same(found["ema"], weights(trained.ema))  # on both ranks
        same(found["model"], weights(trained.model))
    assert json.loads((by_two / f"{way}-{name}.json").read_text()) == pytest.approx(curve, rel=1e-12)


@pytest.mark.parametrize(("way", "name"), cases())
def test_a_checkpoint_of_two_processes_goes_on_in_one(one, by_two, tmp_path, way, name):
    shutil.copytree(by_two / "half", tmp_path, dirs_exist_ok=True)
    trained, curve = learn(name, tmp_path / f"{way}-{name}")
    assert curve == pytest.approx(one[name][1][HALF:], rel=1e-12)
    same(weights(trained.ema), weights(one[name][0].ema))
    same(weights(trained.model), weights(one[name][0].model))


def test_a_checkpoint_of_two_processes_goes_on_in_four_in_either_way(one, by_two, tmp_path):
    shutil.copytree(by_two / "half", tmp_path / "half")
    processes(4, tmp_path, "resume")
    for way, name in cases():
        found = torch.load(tmp_path / f"resumed-{way}-{name}.pt")
        same(found["ema"], weights(one[name][0].ema))
        assert found["curve"] == pytest.approx(one[name][1][HALF:], rel=1e-12)


def test_a_killed_process_ends_the_others_and_is_named(tmp_path):
    done = launched(2, tmp_path, "die-ddp")
    assert done.returncode != 0
    assert root_cause(done.stderr) == (
        "1",
        "-9",
        f"Signal 9 (SIGKILL) received by PID {(tmp_path / 'dead').read_text()}",
    )
    assert [line for line in processes_of(tmp_path) if "test_many" in line] == []


def test_a_frozen_process_is_killed_and_named(tmp_path):
    done = launched(2, tmp_path, "freeze")
    assert done.returncode != 0
    assert "nfm: process 1 has shown no life for 3 s and is killed, so that no other waits for it" in done.stderr
    assert root_cause(done.stderr) == (
        "1",
        "-9",
        f"Signal 9 (SIGKILL) received by PID {(tmp_path / 'dead').read_text()}",
    )
    assert [line for line in processes_of(tmp_path) if "test_many" in line] == []


def test_a_process_that_fails_ends_the_others_and_is_named_with_its_reason(tmp_path):
    done = launched(2, tmp_path, "raise")
    assert done.returncode != 0
    assert root_cause(done.stderr)[:2] == ("1", "1")
    assert "ValueError: what went wrong" in done.stderr[done.stderr.index("Root Cause") :]


def test_a_killed_process_is_started_again_and_all_go_on_from_the_checkpoint(one, tmp_path):
    done = launched(2, tmp_path, "die-fsdp2", options=["--max-restarts=1"])
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "ended.pt")
    assert len(found["curve"]) == STEPS - HALF
    same(found["ema"], weights(one["student"][0].ema))


def root_cause(told: str) -> tuple[str, str, str]:
    """Returns rank, exit status and reason of the process that torch's launcher names as the first to fail."""
    (found,) = re.findall(r"Root Cause.*?rank +: (\d).*?exitcode +: (-?\d+).*?traceback : ([^\n]*)", told, re.S)
    return found


def processes_of(folder: Path) -> list[str]:
    """Returns the command lines that name a folder."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [text for line in lines if str(folder) in (text := line.replace(b"\0", b" ").decode(errors="replace"))]


def test_stages_of_two_processes_write_the_bytes_of_one(tmp_path):
    """couple and evaluate, after a teacher and a student of one process."""
    params = with_overrides(
        read_mapping(ROOT / "params.yaml"), {**TINY, "coupling.teacher.draws": 2, "run.sample_batch": 3}
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    both = [["couple", "--coupling", "teacher"], ["evaluate", "--coupling", "teacher"], ["evaluate", "--teacher"]]
    first = [["prepare"], ["features"], ["reference"], ["teacher"], both[0], ["student", "--coupling", "teacher"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("NFM_TRACKER", "none")
        patch.setenv("OMP_NUM_THREADS", "1")
        for command in (*first, *both[1:]):
            assert nfm(patch, *command) == 0
        written = {folder: contents(tmp_path / folder) for folder in ("artifacts/coupling", "artifacts/evaluate")}
        figures = {path: json.loads(path.read_text()) for path in (tmp_path / "metrics").rglob("evaluate*/*.json")}
        shutil.rmtree(tmp_path / "artifacts" / "coupling")
        processes(2, tmp_path, "stages", *(" ".join(command) for command in both))
    assert {folder: contents(tmp_path / folder) for folder in written} == written
    assert len(figures) == 2
    for path, expected in figures.items():
        found = json.loads(path.read_text())
        assert found.pop("seconds_per_image") != expected.pop("seconds_per_image")  # it was measured again
        assert found == expected


def test_the_stage_student_pairs_over_the_whole_batch_where_it_is_asked_to(tmp_path, monkeypatch):
    asked = {"run.micro_batch": 4, "coupling.minibatch-ot.whole_batch": True, "student.train.steps": 1}
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, **asked})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    seen: list[Pairs] = []

    def loss(model: nn.Module, data: Tensor, noise: Tensor, label: Tensor, *rest: Any, **how: Any) -> Tensor:
        seen.append(Pairs(data, noise, label))
        return student_loss(model, data, noise, label, *rest, **how)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFM_TRACKER", "none")
    monkeypatch.setattr("nfm.stages.student.student_loss", loss)
    for command in ("prepare", "couple --coupling minibatch-ot", "student --coupling minibatch-ot"):
        assert nfm(monkeypatch, *command.split()) == 0
    data, noise, label = (torch.cat([getattr(pairs, name) for pairs in seen]) for name in ("data", "noise", "label"))
    assert len(seen) == 4
    assert len(data) == 16
    for c in label.unique():  # labels bind
        of = label == c
        assert torch.equal(assign(data[of], noise[of]), torch.arange(len(data[of])))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_are_divided_and_not_copied(by_two):
    whole = sum(p.numel() for p in teacher().parameters())
    shares = [torch.load(by_two / f"share-{rank}.pt") for rank in (0, 1)]
    assert sum(shares) == whole
    assert max(shares) < 0.6 * whole


@pytest.mark.parametrize("path", sorted((ROOT / "infra" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_our_config_files(path):
    config = load_config_from_file(str(path))
    assert config.num_processes % config.num_machines == 0
    assert (config.distributed_type.value == "FSDP") == (path.stem == "fsdp2")
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


def test_the_first_version_of_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="version 1 of FSDP, expected 2; set fsdp_version to 2"):
        sharding_wanted()


def test_divided_layers_are_compiled_at_the_first_update_only_and_learn_the_same(one, by_two):
    for name in LEARNT:
        found = torch.load(by_two / f"compiled-{name}.pt")
        same(found["ema"], weights(one[name][0].ema))
        assert found["graphs"][0] > 0
        assert found["graphs"] == found["graphs"][:1] * STEPS
        assert found["breaks"] == {}


def test_scaled_losses_do_not_go_with_divided_weights(monkeypatch):
    monkeypatch.setattr(loop, "sharding_wanted", lambda: True)
    monkeypatch.setattr(
        loop, "open_accelerator", lambda *_: SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    )
    plan = Plan(2, 8, 1e-2, (0.9, 0.95), 1e-4, 2, 1.0, 1.0, 0.9, "fp16", 3)
    how = {"count": COUNT, "plan": plan, "seed": 0, "folder": None, "key": "k", "name": "student"}
    with pytest.raises(
        InputError, match="student: precision is 'fp16', which does not go with weights that are divided"
    ):
        loop.train(student(), student_rows, report=lambda *_: None, **how)


def test_a_process_that_torchrun_has_started_starts_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert process_count() == 1


# What one of several processes does.


def choose(way: str) -> None:
    os.environ |= {"ACCELERATE_USE_FSDP": WAYS[way], "FSDP_VERSION": "2"}


def learn_both_ways(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    for way, name in cases():
        choose(way)
        trained, curve = learn(name)
        torch.save({"ema": weights(trained.ema), "model": weights(trained.model)}, folder / f"{way}-{name}-{rank}.pt")
        learn(name, folder / "half" / f"{way}-{name}", HALF)
        if rank == 0:
            (folder / f"{way}-{name}.json").write_text(json.dumps(curve))
    count_shares(folder / f"share-{rank}.pt")
    learn_compiled(folder)


def learn_compiled(folder: Path) -> None:
    choose("fsdp2")
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "aot_eager"
    for name in LEARNT:
        counters.clear()
        graphs: list[int] = []
        trained, _ = learn(name, compile=True, told=lambda seen=graphs: seen.append(counters["stats"]["unique_graphs"]))
        found = {"ema": weights(trained.ema), "graphs": graphs, "breaks": dict(counters["graph_break"])}
        if os.environ["RANK"] == "0":
            torch.save(found, folder / f"compiled-{name}.pt")


def count_shares(path: Path) -> None:
    """Counts the numbers that this process holds of a divided teacher."""
    from nfm.train.sharding import local, shard

    model = teacher()
    shard(model, torch.device("cpu"))
    torch.save(sum(local(p).numel() for p in model.parameters()), path)


def resume_the_other_way(folder: Path) -> None:
    """Goes on divided from what was whole, and whole from what was divided."""
    for way, name in cases():
        choose("ddp" if way == "fsdp2" else "fsdp2")
        trained, curve = learn(name, folder / "half" / f"{way}-{name}")
        if os.environ["RANK"] == "0":
            torch.save({"ema": weights(trained.ema), "curve": curve}, folder / f"resumed-{way}-{name}.pt")


def die_once(way: str, folder: Path, number: signal.Signals = signal.SIGKILL) -> None:
    """Kills rank 1 behind the checkpoint, or stops it by another signal, but for the second time."""
    choose(way)

    def loss(model: nn.Module, piece: Piece, generator: torch.Generator) -> Tensor:
        dead, reached = folder / "dead", (folder / "checkpoint" / "checkpoint.safetensors").exists()
        if os.environ["RANK"] == "1" and reached and not dead.exists():
            dead.write_text(str(os.getpid()))
            os.kill(os.getpid(), number)
        return student_rows(model, piece, generator)

    LEARNT["student"] = (student, loss)
    trained, curve = learn("student", folder / "checkpoint")
    if os.environ["RANK"] == "0":
        torch.save({"ema": weights(trained.ema), "curve": curve}, folder / "ended.pt")


def freeze(folder: Path) -> None:
    open_processes()
    with Pulse(limit=3):
        die_once("ddp", folder, signal.SIGSTOP)


def fail(folder: Path) -> None:
    """Runs a stage that fails in rank 1, and in which the others wait for it."""

    def stage(*_: object) -> None:
        state = open_processes()
        if state.process_index == 1:
            raise ValueError("what went wrong")
        state.wait_for_everyone()

    os.chdir(folder)
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nfm.stages.teacher.teacher", stage)
        nfm(patch, "teacher")


def run_stages(folder: Path) -> None:
    """Runs commands of ours, each as if it were alone."""
    os.chdir(folder)
    for command in sys.argv[3:]:
        run_command(command.split(), standalone_mode=False)


MODES = {
    "stages": run_stages,
    "learn": learn_both_ways,
    "resume": resume_the_other_way,
    "freeze": freeze,
    "raise": fail,
    **{f"die-{way}": partial(die_once, way) for way in WAYS},
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    MODES[sys.argv[1]](Path(sys.argv[2]))
    torch.distributed.destroy_process_group()
