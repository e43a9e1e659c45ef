"""teacher-train, encode, decode, student-train, sample: networks at a size."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.baseline import sit, tarflow
from benchmarks.peers import Peers
from benchmarks.sizes import Size
from benchmarks.table import Row
from benchmarks.timing import Ratio, Work, compare
from nfm.solve.sample import sample
from nfm.solve.solvers import Euler, Heun, grid, steps_for
from nfm.student.fast import Network, fast
from nfm.student.loss import student_loss
from nfm.student.velocity import guided
from nfm.teacher.denoise import sample_teacher
from nfm.teacher.loss import teacher_loss
from nfm.train.ema import Average
from nfm.train.launch import open_accelerator
from nfm.train.plan import Plan
from nfm.train.update import Loss, Piece, Updater

Precision = Literal["no", "bf16"]
GOALS = {
    "teacher-train": {("a", "fp32"): 1.6, ("b", "fp32"): 1.9, ("b", "bf16"): 1.2},
    "student-train": {("a", "fp32"): 1.75, ("b", "fp32"): 1.95, ("a", "bf16"): 1.3, ("b", "bf16"): 1.1},
}


def updates(
    model: nn.Module, loss: Loss, batch: int, betas: tuple[float, float], precision: Precision, compile: bool
) -> Work:
    """Returns the pipeline's own update: loss, gradient, clipping, AdamW, moving average."""
    plan = Plan(10**6, batch, 1e-4, betas, 1e-4, 100, 0.1, 1.0, 0.9999, precision, 5)
    optimizer = torch.optim.AdamW(model.parameters(), plan.lr, betas, weight_decay=1e-4, fused=True)
    average = Average(model, plan.ema)
    update = Updater(open_accelerator(precision, compile), model.train(), optimizer, loss, plan, batch, 0)
    steps = iter(range(plan.steps))

    def work() -> None:
        update(next(steps))
        average.update()

    return work


def teacher_update(size: Size, precision: Precision = "no", compile: bool = False) -> Work:
    """Returns an update of a teacher of a size on one batch of images."""
    x, label = size.images(0), size.labels()

    def loss(model: nn.Module, _: Piece, generator: torch.Generator) -> Tensor:
        return teacher_loss(model, x, label, generator, noise_std=0.2, label_drop=0.1)

    return updates(size.teacher(), loss, size.batch, (0.9, 0.95), precision, compile)


def student_update(size: Size, precision: Precision = "no", compile: bool = False) -> Work:
    """Returns an update of a student of a size on one batch of pairs."""
    data, noise, label = size.images(0), size.images(1), size.labels()

    def loss(model: nn.Module, _: Piece, generator: torch.Generator) -> Tensor:
        return student_loss(model, data, noise, label, generator, time_mean=-0.2, time_std=1.0, label_drop=0.1)

    return updates(size.student(), loss, size.batch, (0.9, 0.99), precision, compile)


def teacher_train(size: Size, given: Peers, seconds: float) -> Iterator[Row]:
    x, label, plain = size.images(0), size.labels(), size.teacher()
    training = sit.Training(plain, 1e-4, (0.9, 0.95), 1e-4)

    def baseline() -> None:
        z, log_det = tarflow.encode(plain, x + 0.2 * torch.randn_like(x), label)
        training.update(0.5 * z.square().mean() - log_det.mean() / x[0].numel())

    def peer(precision: Precision, written_out: bool) -> Work:
        model = peers.tarflow(given["ml-tarflow"], size)
        if written_out:
            peers.written_out(model)
        update = peers.training(model, (0.9, 0.95), ema=False, bf16=precision == "bf16")
        return lambda: update(lambda: peers.tarflow_loss(model, x + 0.2 * torch.randn_like(x), label))

    yield Row("teacher-train", size.name, "baseline", compare(teacher_update(size), baseline, seconds))
    yield from trainings("teacher-train", size, teacher_update, "ml-tarflow", peer, given, seconds)


def student_train(size: Size, given: Peers, seconds: float) -> Iterator[Row]:
    data, noise, label, plain = size.images(0), size.images(1), size.labels(), size.student()
    training = sit.Training(plain, 1e-4, (0.9, 0.99), 1e-4)

    def baseline() -> None:
        training.update(sit.loss(plain, data, noise, torch.rand(len(data), device=data.device), label))

    def peer(precision: Precision, written_out: bool) -> Work:
        model = peers.sit(given["sit"], size).train()
        if written_out:
            peers.written_out(model)
        update = peers.training(model, (0.9, 0.999), ema=True, bf16=precision == "bf16")
        return lambda: update(lambda: peers.sit_loss(model, data, noise, label))

    yield Row("student-train", size.name, "baseline", compare(student_update(size), baseline, seconds))
    yield from trainings("student-train", size, student_update, "sit", peer, given, seconds)


def trainings(
    name: str,
    size: Size,
    ours: Callable[[Size, Precision, bool], Work],
    known: str,
    theirs: Callable[[Precision, bool], Work],
    given: Peers,
    seconds: float,
) -> Iterator[Row]:
    """Compares our update in both precisions and compiled with a peer's, in bfloat16 in both of its ways to attend."""
    plain, low, compiled = ("fp32", "no", False), ("bf16", "bf16", False), ("bf16 compiled", "bf16", True)
    fp32, bf16, best = ("fp32", "no", False), ("bf16", "bf16", False), ("bf16, attention written out", "bf16", True)
    for mine, other in ((plain, fp32), (low, fp32), (low, bf16), (low, best), (compiled, best)):
        ratio = compare(ours(size, *mine[1:]), theirs(*other[1:]), seconds) if known in given else None
        # A goal over bfloat16 is over SiT's fastest way, of ml-tarflow over its own.
        rival = other is fp32 or other is (best if known == "sit" else bf16)
        goal = GOALS[name].get((size.name, other[0][:4])) if mine is low and rival else None
        yield Row(name, f"{size.name} {mine[0]}", f"{known} {other[0]}", ratio, goal)


def encode(size: Size, given: Peers, seconds: float) -> Iterator[Row]:
    model, x, label = size.teacher().eval(), size.images(0), size.labels()
    few = x[:4], label[:4]
    exact, _ = tarflow.encode(size.teacher().double(), few[0].double(), few[1])
    error = deviation(model.encode(*few)[0], exact)

    def ours() -> object:
        return model.encode(x, label)

    baseline = bare_ratio(ours, lambda: tarflow.encode(model, x, label), seconds)
    yield Row("encode", size.name, "baseline", baseline, error=error)
    ratio = None
    if "ml-tarflow" in given:
        peer = peers.tarflow(given["ml-tarflow"], size).eval()
        ratio = bare_ratio(ours, lambda: peer(x, label), seconds)
    yield Row("encode", size.name, "ml-tarflow fp32", ratio, 1.0, error)


def decode(size: Size, given: Peers, seconds: float) -> Iterator[Row]:
    model, few = size.teacher().eval(), (size.images(0, 4), size.labels(4))
    with torch.no_grad():
        exact = tarflow.decode(size.teacher().double(), few[0].double(), few[1])
        error = deviation(sample_teacher(model, *few), exact)
    ratio = bare_ratio(lambda: sample_teacher(model, *few), lambda: tarflow.decode(model, *few), seconds)
    yield Row("decode", f"{size.name} B=4", "baseline", ratio, error=error)
    for count in (256, 4):
        ratio = decode_ratio(size, given, count, seconds) if "ml-tarflow" in given else None
        yield Row("decode", f"{size.name} B={count}", "ml-tarflow", ratio, 1.15, error)


def decode_ratio(size: Size, given: Peers, count: int, seconds: float) -> Ratio:
    """Compares decoding so many images with ml-tarflow's."""
    model, z, label = size.teacher().eval(), size.images(0, count), size.labels(count)
    peer = peers.tarflow(given["ml-tarflow"], size).eval()
    tokens = peer.patchify(z)  # which it overwrites
    return bare_ratio(lambda: sample_teacher(model, z, label), lambda: peer.reverse(tokens.clone(), label), seconds)


def sampling(size: Size, given: Peers, seconds: float) -> Iterator[Row]:
    model, z, label = size.student().eval(), size.images(0), size.labels()
    few = (z[:4], torch.linspace(0.1, 0.9, 4).to(z), label[:4])
    double = (part.double() for part in few[:2])
    exact = sit.velocity(size.student().double(), *double, few[2])
    ways = {"fp32": (model, 1.09), "bf16": (fast(model, bf16=True, compile=False), 1.38)}
    with torch.no_grad():
        errors = {name: network(*few, None) - exact for name, (network, _) in ways.items()}
    other = peers.sit(given["sit"], size).eval() if "sit" in given else None
    plain = sampling_ratio(model, plain_sit(model), z, label, 1, seconds)
    yield Row("sample", f"{size.name} NFE 1", "baseline", plain, error=errors["fp32"].abs().max().item())
    for nfe in (1, 4, 31):
        for name, (network, goal) in ways.items():
            ratio = sampling_ratio(network, other, z, label, nfe, seconds) if other else None
            error = errors[name].square().mean().sqrt().item()
            note = f"error is a root mean square; at most {errors[name].abs().max():.1e}"
            yield Row("sample", f"{size.name} {name} NFE {nfe}", "sit fp32", ratio, goal, error, note)


def sampling_ratio(
    model: Network, other: Callable[..., Tensor], z: Tensor, label: Tensor, nfe: int, seconds: float
) -> Ratio:
    """Compares our sampling with our solver on another network."""
    solver = Euler() if nfe < 5 else Heun()
    times = grid("t2", steps_for(solver, nfe))
    return bare_ratio(
        lambda: sample(lambda c: guided(model, c), z, label, solver, times, len(z)),
        lambda: solver.solve(lambda x, t: other(x, t, label), z, times),
        seconds,
    )


def plain_sit(model: nn.Module) -> Callable[..., Tensor]:
    return lambda x, t, label: sit.velocity(model, x, t, label)


def bare_ratio(ours: Work, theirs: Work, seconds: float) -> Ratio:
    """Compares without autograd's graph."""
    with torch.no_grad():
        return compare(ours, theirs, seconds)


def deviation(found: Tensor, exact: Tensor) -> float:
    """Returns the largest deviation from what the baseline gives in float64."""
    return (found - exact).abs().max().item()
