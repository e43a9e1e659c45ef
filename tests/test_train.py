"""The training loop: what it computes, how it is divided, and how it survives being killed.

Run as a script this file is a training of its own process, for the tests that kill one or launch two.
"""

import copy
import io
import math
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from nfm.artifacts import load_tensors, save_tensors
from nfm.errors import InputError
from nfm.train.checkpoint import checkpoint_path, discard
from nfm.train.launch import open_accelerator, process_count
from nfm.train.loop import Plan, train
from nfm.train.order import batch_indices, pieces
from nfm.train.progress import Display
from nfm.train.schedule import learning_rate

COUNT = 37


def a_plan(**changes):
    settings = {
        "steps": 12,
        "batch": 8,
        "lr": 1.0e-2,
        "betas": (0.9, 0.95),
        "weight_decay": 1.0e-2,
        "warmup": 3,
        "final_lr": 0.1,
        "clip": 1.0,
        "ema": 0.9,
        "precision": "no",
        "max_skipped": 3,
        "log_every": 1,
    }
    return Plan(**(settings | changes))


def a_network(dropout=0.0):
    """Layers with parameters, buffers and, with dropout, random numbers that no generator gives."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 3)
        return nn.Sequential(*layers).double()


def denoising(model, piece, generator):
    data = torch.sin(torch.arange(3.0 * COUNT, dtype=torch.float64)).reshape(COUNT, 3)[piece.index].to(generator.device)
    noise = torch.randn(data.shape, generator=generator, device=generator.device, dtype=data.dtype)
    return (model(data + noise) - data).square().mean()


def smooth_network(dropout=0.0):
    """Without statistics over the rows of a forward pass, so that it does not matter how a batch is cut."""
    network = a_network(dropout)
    network[1] = nn.Identity()
    return network


def rolling(model, piece, generator):
    """A loss without draws."""
    data = torch.sin(torch.arange(3.0, device=generator.device) + piece.index.to(generator.device).double()[:, None])
    return (model(data) - data.roll(1, 1)).square().mean()


def run(model, loss, plan, *, folder=None, key="key", count=COUNT, seed=0, report=None):
    """Trains, and returns what came of it with the reported metrics by update."""
    curve = {}

    def keep(metrics, step):
        curve[step] = {name: value for name, value in metrics.items() if name != "images_per_second"}
        if report is not None:
            report(metrics, step)

    trained = train(model, loss, count=count, plan=plan, seed=seed, folder=folder, key=key, report=keep, name="test")
    return trained, curve


def states(trained):
    return {
        f"{kind}.{name}": value.cpu()
        for kind, model in (("model", trained.model), ("ema", trained.ema))
        for name, value in model.state_dict().items()
    }


def assert_same_bits(one, two):
    assert set(one) == set(two)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


# Order and division


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (10, 10), (7, 20), (1, 4), (5, 1)])
def test_every_row_comes_once_per_epoch_and_batches_run_across_epochs(count, batch):
    epochs = 3
    steps = -(-epochs * count // batch)
    rows = torch.cat([batch_indices(count, batch, 0, step) for step in range(steps)])
    assert len(rows) == steps * batch
    for epoch in rows[: epochs * count].reshape(epochs, count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_the_order_changes_with_the_epoch_and_with_the_seed():
    first, again, second, other = (
        batch_indices(50, 50, seed, step).tolist() for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(50))}) == 4


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 4, 100])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_the_processes_shares_make_up_the_batch(micro_batch, processes):
    batch, shares = 16, []
    for rank in range(processes):
        share = [range(batch)[piece] for piece in pieces(batch, micro_batch, rank, processes)]
        assert all(0 < len(piece) <= (micro_batch or batch) for piece in share)
        shares.append(sum(len(piece) for piece in share))
        rows = [row for piece in share for row in piece]
        assert rows == list(range(sum(shares[:-1]), sum(shares)))
    assert sum(shares) == batch
    assert max(shares) - min(shares) <= 1


def test_the_learning_rate_rises_to_its_height_and_falls_to_its_share():
    rates = [learning_rate(step, steps=110, lr=2.0, warmup=10, final_lr=0.1) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == 2.0 == max(rates)
    assert rates[59] == pytest.approx(2.0 * (1 + 0.1) / 2)  # half way down
    assert rates[-1] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_a_warm_up_as_long_as_the_training_only_rises():
    assert [learning_rate(step, steps=2, lr=1.0, warmup=2, final_lr=0.0) for step in range(2)] == [0.5, 1.0]


# Updates


class Position(nn.Module):
    """One number, whose loss of its own value has the gradient 1 everywhere."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self):
        return self.at


STEADY = {"warmup": 0, "final_lr": 1.0, "weight_decay": 0.0, "clip": 1.0e9}


def test_adamw_under_a_constant_slope_walks_by_the_learning_rate_and_the_average_lags_as_it_must():
    lr, decay, steps = 1.0e-2, 0.8, 20
    plan = a_plan(steps=steps, lr=lr, ema=decay, **STEADY)
    trained, curve = run(Position(), lambda model, piece, generator: model(), plan)
    # w_n = -n lr, up to AdamW's 1e-8; mean_n = sum of (1 - d) d^(n - k) w_k, in closed form below.
    lag = decay / (1 - decay) * (1 - decay**steps)
    assert trained.model.at.item() == pytest.approx(-steps * lr, rel=1e-7)
    assert trained.ema.at.item() == pytest.approx(-(steps - lag) * lr, rel=1e-7)
    assert curve[1]["grad_norm"] == pytest.approx(1.0)
    assert curve[steps]["loss"] == pytest.approx(-(steps - 1) * lr, rel=1e-7)


def test_clipping_bounds_the_gradient_that_adamw_sees_but_not_the_one_reported():
    # AdamW moves by lr g / (g + 1e-8), so a gradient clipped to 1e-8 moves it by half of lr.
    plan = a_plan(steps=10, lr=1.0e-2, **(STEADY | {"clip": 1.0e-8}))
    trained, curve = run(Position(), lambda model, piece, generator: 5 * model(), plan)
    assert trained.model.at.item() == pytest.approx(-10 * 1.0e-2 / 2, rel=1e-3)  # clip adds 1e-6 to the norm of 5
    assert curve[10]["grad_norm"] == pytest.approx(5.0)


def test_weight_decay_shrinks_the_weights_apart_from_the_gradient():
    plan = a_plan(steps=10, lr=0.1, **(STEADY | {"weight_decay": 0.5}))
    model = Position()
    nn.init.ones_(model.at)
    trained, _ = run(model, lambda model, piece, generator: 0 * model(), plan)
    assert trained.model.at.item() == pytest.approx((1 - 0.1 * 0.5) ** 10)


def test_the_learning_rate_follows_the_schedule():
    _, curve = run(Position(), lambda model, piece, generator: model(), a_plan(log_every=5))
    assert sorted(curve) == [5, 10, 12]  # the last update is reported whatever log_every
    for step, metrics in curve.items():
        assert metrics["lr"] == learning_rate(step - 1, steps=12, lr=1.0e-2, warmup=3, final_lr=0.1)


def test_training_finds_the_mean_of_the_data():
    def distance(model, piece, generator):
        return (model() - piece.index.to(generator.device).double()).square().mean()

    plan = a_plan(steps=600, lr=1.0, weight_decay=0.0, batch=COUNT, final_lr=1.0e-3, clip=1.0e3, log_every=600)
    trained, _ = run(Position(), distance, plan)
    mean, variance = (COUNT - 1) / 2, (COUNT**2 - 1) / 12
    assert trained.model.at.item() == pytest.approx(mean, abs=1e-2)
    assert trained.loss >= variance


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 5])
def test_the_division_into_forward_passes_changes_only_rounding(micro_batch):
    whole, curve = run(smooth_network(), rolling, a_plan())
    parts, divided = run(smooth_network(), rolling, a_plan(micro_batch=micro_batch))
    # AdamW's first steps are lr g / |g|: rounding of 1e-16 in g stays rounding in w, where |g| is not tiny itself.
    torch.testing.assert_close(states(parts), states(whole), rtol=1e-9, atol=1e-9)
    for step, metrics in curve.items():
        assert divided[step] == pytest.approx(metrics, rel=1e-9)


def test_draws_differ_between_updates_and_between_forward_passes():
    draws = []

    def record(model, piece, generator):
        draws.append(tuple(torch.randn(2, generator=generator, device=generator.device).tolist()))
        draws.append(tuple(torch.randn(2).tolist()))  # what dropout draws from
        return model()

    run(Position(), record, a_plan(micro_batch=2))
    assert len(set(draws)) == len(draws) == 2 * 12 * 4
    first, draws = draws, []
    run(Position(), record, a_plan(micro_batch=2), seed=1)
    assert not set(first) & set(draws)


def test_the_model_given_and_the_global_random_stream_stay_as_they_were():
    model = a_network(dropout=0.5)
    weights, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    trained, _ = run(model, denoising, a_plan())
    assert_same_bits(weights, model.state_dict())
    assert torch.equal(stream, torch.get_rng_state())
    assert not trained.model.training
    assert not trained.ema.training
    assert not any(parameter.requires_grad for parameter in trained.ema.parameters())


def test_buffers_of_the_average_are_those_of_the_model():
    trained, _ = run(a_network(), denoising, a_plan())
    assert int(trained.ema[1].num_batches_tracked) == 12
    assert torch.equal(trained.ema[1].running_mean, trained.model[1].running_mean)
    assert not torch.equal(trained.ema[0].weight, trained.model[0].weight)


def test_a_loss_that_is_not_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"shape \(8,\).*take the mean"):
        run(Position(), lambda model, piece, generator: model() * torch.ones(8, device=generator.device), a_plan())


# Precision


def test_trainings_of_different_precision_follow_each_other_in_one_process():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    def fit(model, piece, generator):
        out = model(torch.ones(len(piece.index), 3, device=generator.device))
        assert out.dtype == torch.float32  # the loss is taken in full precision
        return out.square().mean()

    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16), ("no", torch.float32)):
        seen.clear()
        trained, _ = run(nn.Sequential(Watched(3, 3)), fit, a_plan(precision=precision))
        assert set(seen) == {dtype}
        assert {value.dtype for value in states(trained).values()} == {torch.float32}
        for model in (trained.model, trained.ema):
            seen.clear()
            model(torch.ones(1, 3, device=next(model.parameters()).device))
            assert seen == [torch.float32]  # autocast ends with the training


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains in fp16")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(InputError, match=r"precision is 'fp16'.*'bf16' or 'fp32'"):
        run(Position(), lambda model, piece, generator: model(), a_plan(precision="fp16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_on_a_gpu_trains_and_counts_the_scalers_first_overflows():
    def fit(model, piece, generator):
        return 1.0e3 * model(torch.ones(len(piece.index), 3, device=generator.device)).square().mean()

    trained, curve = run(nn.Linear(3, 3), fit, a_plan(steps=200, precision="fp16", max_skipped=50))
    assert trained.skipped < 50
    losses = [metrics["loss"] for metrics in curve.values() if "loss" in metrics]  # a skipped update has none
    assert trained.skipped == len(curve) - len(losses)
    assert losses[-1] < losses[0]


# What is not finite

NOT_FINITE = {
    "nan": lambda at: at * math.nan,
    "inf": lambda at: at + math.inf,  # the gradient stays finite
    "gradient": lambda at: (at - at.detach()).abs().sqrt(),  # 0, with an infinite slope
}


@pytest.mark.parametrize("spoil", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_an_update_that_is_not_finite_is_left_out_and_counted(spoil):
    calls = []

    def sometimes(model, piece, generator):
        calls.append(None)
        return spoil(model()) if len(calls) in (3, 4, 7) else model()

    plan = a_plan(steps=10, lr=1.0e-2, **STEADY)
    trained, curve = run(Position(), sometimes, plan)
    assert trained.steps == 10
    assert trained.skipped == 3 == curve[10]["skipped"]
    # AdamW and the average saw the seven others alone.
    plain, _ = run(Position(), lambda model, piece, generator: model(), a_plan(steps=7, lr=1.0e-2, **STEADY))
    assert_same_bits(states(trained), states(plain))
    assert all(math.isfinite(value) for metrics in curve.values() for value in metrics.values())
    assert {step for step, metrics in curve.items() if "loss" not in metrics} == {3, 4, 7}
    # Nor do the three count in a mean over several updates.
    calls.clear()
    together, _ = run(Position(), sometimes, a_plan(steps=10, lr=1.0e-2, log_every=10, **STEADY))
    assert together.loss == pytest.approx(sum(-n * 1.0e-2 for n in range(7)) / 7)


@pytest.mark.parametrize("spoil", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_too_many_updates_in_a_row_that_are_not_finite_end_the_training(spoil):
    calls = []

    def in_the_end(model, piece, generator):
        calls.append(None)
        return spoil(model()) if len(calls) > 5 else model()

    with pytest.raises(InputError, match=r"not finite in 3 updates in a row, at update 8 .*lower lr.*'bf16'"):
        run(Position(), in_the_end, a_plan(max_skipped=3))


# Checkpoints


class Stopped(Exception):
    pass


def stop_at(step):
    def report(metrics, done):
        if done == step:
            raise Stopped

    return report


@pytest.mark.parametrize("at", [2, 3, 7, 12])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stopped_and_resumed_training_has_the_bits_of_an_unstopped_one(tmp_path, at, precision):
    plan = a_plan(checkpoint_every=3, micro_batch=3, precision=precision)
    spoiled = batch_indices(COUNT, 8, 0, 4)[:3].tolist()

    def loss(model, piece, generator):  # skips update 5, so that the counts are restored too
        value = denoising(model, piece, generator)
        return value * math.nan if piece.index.tolist() == spoiled else value

    unstopped, curve = run(a_network(0.3), loss, plan)
    with pytest.raises(Stopped):
        run(a_network(0.3), loss, plan, folder=tmp_path, report=stop_at(at))
    torch.manual_seed(at)  # another process has another global stream
    resumed, rest = run(a_network(0.3), loss, plan, folder=tmp_path)
    assert_same_bits(states(resumed), states(unstopped))
    assert min(rest) == (at - 1) // 3 * 3 + 1  # it went on from the last checkpoint
    assert rest == {step: curve[step] for step in rest}
    assert resumed.skipped == unstopped.skipped == 1


def test_a_loss_that_draws_from_the_global_streams_goes_on_in_them(tmp_path):
    def noisy(model, piece, generator):
        return denoising(model, piece, generator) * (random.gauss(1, 0.1) + np.random.standard_normal())

    def seed_streams(seed):
        random.seed(seed)
        np.random.seed(seed)

    plan = a_plan(checkpoint_every=3)
    seed_streams(0)
    unstopped, _ = run(a_network(0.3), noisy, plan)
    seed_streams(0)
    with pytest.raises(Stopped):
        run(a_network(0.3), noisy, plan, folder=tmp_path, report=stop_at(7))
    seed_streams(1)
    resumed, _ = run(a_network(0.3), noisy, plan, folder=tmp_path)
    assert_same_bits(states(resumed), states(unstopped))


def test_a_mean_loss_over_a_stop_is_that_over_no_stop(tmp_path):
    plan = a_plan(checkpoint_every=4, log_every=6)
    _, curve = run(a_network(), denoising, plan)
    calls = []

    def stopping(model, piece, generator):
        calls.append(None)
        if len(calls) == 6:
            raise Stopped
        return denoising(model, piece, generator)

    with pytest.raises(Stopped):
        run(a_network(), stopping, plan, folder=tmp_path)
    assert run(a_network(), denoising, plan, folder=tmp_path)[1] == curve


def test_a_finished_training_is_read_back_without_an_update(tmp_path):
    plan = a_plan(checkpoint_every=100)
    first, _ = run(a_network(), denoising, plan, folder=tmp_path)
    second, curve = run(a_network(), None, plan, folder=tmp_path)
    assert_same_bits(states(first), states(second))
    assert not curve
    assert second.loss == first.loss
    before = load_tensors(checkpoint_path(tmp_path))[1]["tally"]["seconds"]
    assert second.seconds > before > 0


def test_a_checkpoint_holds_arrays_and_json_alone_and_leaves_nothing_beside(tmp_path):
    run(a_network(), denoising, a_plan(checkpoint_every=3), folder=tmp_path)
    assert list(tmp_path.iterdir()) == [checkpoint_path(tmp_path)]
    tensors, header = load_tensors(checkpoint_path(tmp_path))  # safetensors cannot hold code
    assert {name.partition("/")[0] for name in tensors} == {"model", "average", "optimizer", "streams"}
    assert header["tally"]["step"] == 12
    discard(tmp_path)
    discard(tmp_path)
    assert not tmp_path.exists()


def test_without_an_interval_no_checkpoint_is_written(tmp_path):
    run(a_network(), denoising, a_plan(checkpoint_every=0), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def a_checkpoint(folder):
    run(a_network(), denoising, a_plan(checkpoint_every=3), folder=folder)
    return checkpoint_path(folder)


def test_a_checkpoint_of_another_key_is_refused_and_kept(tmp_path):
    path = a_checkpoint(tmp_path)
    content = path.read_bytes()
    with pytest.raises(InputError, match=f"{path} .*other params.*delete it .*restore them"):
        run(a_network(), denoising, a_plan(), folder=tmp_path, key="another")
    assert path.read_bytes() == content


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one byte": lambda content: content[:-100] + bytes([content[-100] ^ 64]) + content[-99:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = a_checkpoint(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path} is corrupt.*delete it"):
        run(a_network(), denoising, a_plan(), folder=tmp_path)


def test_a_checkpoint_of_another_model_under_the_same_key_is_named(tmp_path):
    path = a_checkpoint(tmp_path)
    with pytest.raises(InputError, match=f"{path} does not fit the model.*delete it"):
        run(Position(), denoising, a_plan(), folder=tmp_path)


# Several processes, and killed ones; this file is their script.


def script(mode, folder, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | variables
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, __file__, mode, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


KILLED = {"checkpoint_every": 4}


def test_a_training_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the killed process, so that sums have one order
    unkilled, curve = run(a_network(0.3), denoising, a_plan(**KILLED))
    process = script("killed", tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the checkpoint of update 4, and what was written of that of 8
    resumed, rest = run(a_network(0.3), denoising, a_plan(**KILLED), folder=tmp_path)
    torch.set_num_threads(threads)
    assert_same_bits(states(resumed), states(unkilled))
    assert rest == {step: curve[step] for step in range(5, 13)}
    assert list(tmp_path.iterdir()) == [checkpoint_path(tmp_path)]


def test_a_training_told_to_end_saves_the_update_that_it_is_at_and_goes_on_behind_it(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    unstopped, curve = run(a_network(0.3), denoising, a_plan(**KILLED))
    process = script("told", tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    handler = signal.getsignal(signal.SIGTERM)
    resumed, rest = run(a_network(0.3), denoising, a_plan(**KILLED), folder=tmp_path)
    torch.set_num_threads(threads)
    assert min(rest) == 8  # the last checkpoint that was due is that of update 4
    assert_same_bits(states(resumed), states(unstopped))
    assert rest == {step: curve[step] for step in range(8, 13)}
    assert signal.getsignal(signal.SIGTERM) == handler


# Even shares, with the draws that one process makes for the same pieces of the batch; and uneven ones, without draws.
LAUNCHED = {
    "even": (smooth_network(0.3), denoising, a_plan(checkpoint_every=6, log_every=2, micro_batch=2)),
    "uneven": (smooth_network(), rolling, a_plan(batch=9, log_every=5)),
}


def test_two_processes_train_as_one_and_one_of_them_speaks(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [script("launched", tmp_path, RANK=rank, LOCAL_RANK=rank, **world) for rank in ("0", "1")]
    texts = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], texts
    for name, (network, loss, plan) in LAUNCHED.items():
        one, curve = run(network, loss, plan)
        tensors, header = load_tensors(tmp_path / f"{name}.safetensors")
        # Sums in another order differ by rounding, 1e-16 relative, which twelve updates keep far below 1e-9.
        torch.testing.assert_close(tensors, states(one), rtol=1e-9, atol=1e-9)
        assert header["reports"] == [len(curve), 0]
        for step, metrics in curve.items():
            assert header["curve"][str(step)] == pytest.approx(metrics, rel=1e-9)
    assert [text.count("test  update ") for text in texts] == [6 + 3, 0]
    assert [path.name for path in (tmp_path / "even").iterdir()] == ["checkpoint.safetensors"]


def launched(folder):
    for name, (network, loss, plan) in LAUNCHED.items():
        trained, curve = run(network, loss, plan, folder=folder / name)
        reports = [0, 0]
        torch.distributed.all_gather_object(reports, len(curve))
        if torch.distributed.get_rank() == 0:
            save_tensors(folder / f"{name}.safetensors", states(trained), {"curve": curve, "reports": reports})
    torch.distributed.destroy_process_group()


def told(folder):
    def tell(metrics, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    run(a_network(0.3), denoising, a_plan(**KILLED), folder=folder, report=tell)


def killed(folder):
    replace, calls = os.replace, []

    def replace_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_once
    run(a_network(0.3), denoising, a_plan(**KILLED), folder=folder)


def test_more_processes_than_images_are_refused(monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 9)
    with pytest.raises(InputError, match=r"batch is 8.* 9 processes.*raise batch"):
        run(Position(), denoising, a_plan())


@pytest.mark.parametrize(("config", "expected"), [("num_processes: 4", 4), ("num_processes: 1", 1)])
def test_the_number_of_processes_is_that_of_accelerates_config(tmp_path, monkeypatch, config, expected):
    path = tmp_path / "default_config.yaml"
    path.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n{config}\n")
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(path))
    monkeypatch.setattr("nfm.train.launch.default_config_file", str(path))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert process_count() == expected
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what the launcher sets
    assert process_count() == 1


# What is shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_display_tells_loss_and_progress_on_terminals_and_elsewhere(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Display("teacher@0", 40, 10, shown=True) as display:
        for step in range(11, 41):
            display.update(step, 0.25)
            if step % 10 == 0:
                display.line(step, 0.25)
    text = sys.stderr.getvalue()
    for word in ("teacher@0", "resumed after update 10 of 40", "0.2500", "it/s"):
        assert word in text
    assert "40/40" in text
    # Lines where nobody looks on, a bar that redraws itself where somebody does.
    assert ("update 20/40" in text) == (stream is io.StringIO)
    assert ("\x1b[" in text) == (stream is Terminal)


def test_a_display_that_is_not_shown_is_silent(capfd):
    with Display("teacher@0", 2, 1, shown=False) as display:
        display.update(2, 0.5)
        display.line(2, 0.5)
    assert capfd.readouterr() == ("", "")


if __name__ == "__main__":
    {"killed": killed, "launched": launched, "told": told}[sys.argv[1]](Path(sys.argv[2]))


class Blocks(nn.Module):
    """Layers that repeat, as those of teacher and student do."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_compiled_layers_learn_the_same_and_are_compiled_at_the_first_update_only(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    torch.manual_seed(0)
    model, graphs = Blocks().double(), []

    def learn(compile):
        return train(
            model,
            denoising,
            count=COUNT,
            plan=a_plan(compile=compile),
            seed=0,
            folder=None,
            key="k",
            report=lambda metrics, step: graphs.append(counters["stats"]["unique_graphs"]),
            name="blocks",
        )

    plain = learn(False)
    torch._dynamo.reset()
    counters.clear()
    graphs.clear()
    compiled = learn(True)
    assert 1 <= graphs[0] <= 2  # the first layer's input has no gradient
    assert graphs == graphs[:1] * 12
    assert type(compiled.model) is Blocks
    for name, weights in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], weights, rtol=1e-9, atol=1e-12)


def test_compiling_without_a_compiler_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(InputError, match=r"train\.compile is true, but there is no C\+\+ compiler .* or set"):
        open_accelerator("no", compile=True)
