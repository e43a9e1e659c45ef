"""Training, encoding, decoding and sampling on one GPU at the size of ImageNet 64: writes results/gpu.json.

`python -m benchmarks.gpu [NAME ...]` wants a GPU; `--small` runs the same on tiny networks anywhere, to see whether it
runs, and writes nothing unless told where. What another run has measured stays in the file until it is measured again.
A rate of use (MFU) is the time that a device would take for the counted FLOPs of a network at the rate of a large
matrix product of the same precision, measured in the same run, over the time that it takes.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.__main__ import machine
from benchmarks.networks import updates
from benchmarks.sizes import device, stirred
from benchmarks.timing import Work, clocked
from nfm.artifacts import read_json, write_json
from nfm.plan.count import Cost, encode_cost, likelihood_step_cost, matching_step_cost, on_meta, velocity_cost
from nfm.random import generator_for
from nfm.solve.sample import sample
from nfm.solve.solvers import Euler, Heun, grid, steps_for
from nfm.student.fast import Network, fast
from nfm.student.loss import student_loss
from nfm.student.velocity import SiT, guided
from nfm.teacher.denoise import sample_teacher
from nfm.teacher.loss import teacher_loss
from nfm.teacher.sampler import TeacherSampler
from nfm.teacher.tarflow import TarFlow

RESULT = Path(__file__).parents[1] / "results" / "gpu.json"
CLASSES = 1000
Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class Scale:
    """Networks and batches.

    Attributes:
        teacher: TarFlow's arguments, but for the number of classes.
        student: SiT's, likewise.
        batches: Images at once: of an update of the teacher and of the student, encoded, sampled.
        decoded: Images decoded at once.
        chunks: Tokens solved for at once, of the fewest of those images.
        product: Side of the matrices whose product gives the device's rate.
        repeats: Times that each work is done, after two that are not counted; what takes seconds is done once.
    """

    teacher: dict[str, Any]
    student: dict[str, Any]
    batches: dict[str, int]
    decoded: tuple[int, ...]
    chunks: tuple[int, ...]
    product: int
    repeats: int

    def make_teacher(self) -> TarFlow:
        return TarFlow(**self.teacher, classes=CLASSES)

    def make_student(self) -> SiT:
        return SiT(**self.student, classes=CLASSES)

    def images(self, count: int) -> Tensor:
        return torch.randn(count, *self.teacher["shape"], generator=generator_for(0)).to(device())

    def labels(self, count: int) -> Tensor:
        return (torch.arange(count) % CLASSES).to(device())


IMAGE = {"shape": (3, 64, 64), "patch": (4, 4)}  # 256 tokens
FULL = Scale(
    IMAGE | {"blocks": 8, "layers": 8, "width": 768, "head_size": 64},
    IMAGE | {"depth": 28, "width": 1152, "head_size": 72},  # SiT-XL/4
    {"teacher-train": 128, "student-train": 128, "encode": 128, "sample": 64},
    (4, 64),
    (32, 255),
    8192,
    5,
)
TINY = {"shape": (3, 16, 16), "patch": (4, 4)}
SMALL = Scale(
    TINY | {"blocks": 2, "layers": 1, "width": 32, "head_size": 16},
    TINY | {"depth": 2, "width": 32, "head_size": 16},
    dict.fromkeys(FULL.batches, 4),
    (2, 4),
    (4, 15),
    256,
    1,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--small", action="store_true", help="tiny networks, on any device")
    parser.add_argument("--to", type=Path, help="file for the figures; results/gpu.json by default, for --small none")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in WORKS]
    if unknown:
        wrong = f"NAME is {unknown[0]!r}, expected one of {', '.join(WORKS)}"
    else:
        wrong = (
            None if given.small or device().type == "cuda" else "there is no GPU; run --small to see whether it runs"
        )
    if wrong:
        print(f"benchmarks.gpu: {wrong}", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    to = given.to or (None if given.small else RESULT)
    scale = SMALL if given.small else FULL
    rates = {precision: product_rate(scale.product, precision) for precision in ("no", "bf16")}
    for name in given.names or WORKS:
        found = measured(name, scale, rates)
        if to is not None:
            content: dict[str, Any] = read_json(to) if to.exists() else {}
            write_json(
                to, {known: found if known == name else content[known] for known in WORKS if known in {name, *content}}
            )


def measured(name: str, scale: Scale, rates: dict[str, float]) -> dict[str, Any]:
    """Measures a work at a scale, given the rates of `product_rate`, and prints the rows as they come."""
    rows, profiles = [], {}
    for row in WORKS[name](scale, rates):
        if "profile" in row:
            profiles[row["how"]] = row.pop("profile")
        print(name, *(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
        rows.append(row)
    rate = {name_of(precision): rate for precision, rate in rates.items()}
    return {"machine": machine(), "product_flops": rate, "rows": rows, "profiles": profiles}


def name_of(precision: str) -> str:
    return "fp32" if precision == "no" else precision


def product_rate(side: int, precision: Precision) -> float:
    """Returns the FLOP/s of a square matrix product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(side, side, device=device(), dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: one @ other, 10)


def timed(work: Work, repeats: int) -> float:
    """Returns the seconds of one repetition after two that are not counted."""
    work()
    work()
    return clocked(work, repeats)


def row(
    how: str, images: int, seconds: float, cost: Cost | None = None, rate: float = 1.0, **more: Any
) -> dict[str, Any]:
    """Returns one figure: images a second, the rate of use where FLOPs are counted, the memory at the most."""
    found: dict[str, Any] = {"how": how, "batch": images, "images_per_second": images / seconds}
    if cost is not None:
        found["mfu"] = images * cost.flops / seconds / rate
    if device().type == "cuda":
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return found | more


def teacher_loss_on(x: Tensor, label: Tensor) -> Callable[[nn.Module, Tensor, torch.Generator], Tensor]:
    return lambda model, _, generator: teacher_loss(model, x, label, generator, noise_std=0.05, label_drop=0.1)


def student_loss_on(x: Tensor, label: Tensor) -> Callable[[nn.Module, Tensor, torch.Generator], Tensor]:
    how = {"time_mean": -0.2, "time_std": 1.0, "label_drop": 0.1}
    return lambda model, _, generator: student_loss(model, x, x.flip(0), label, generator, **how)


def trained(
    name: str,
    make: Callable[[Scale], Any],
    loss_on: Callable[[Tensor, Tensor], Any],
    cost_of: Callable[[Any], Cost],
    scale: Scale,
    rates: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """Times the pipeline's own update: loss, gradient, clipping, AdamW, moving average."""
    count, cost = scale.batches[name], cost_of(on_meta(lambda: make(scale)))
    loss = loss_on(scale.images(count), scale.labels(count))
    for how, compile in (("bf16", False), ("bf16 compiled", True)):
        update = updates(stirred(lambda: make(scale)), loss, count, (0.9, 0.95), "bf16", compile)
        seconds = timed(update, scale.repeats)
        yield row(how, count, seconds, cost, rates["bf16"], profile=kernels(update))


@torch.no_grad()
def encoded(scale: Scale, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    count, model = scale.batches["encode"], stirred(scale.make_teacher).eval()
    x, label, cost = scale.images(count), scale.labels(count), encode_cost(on_meta(scale.make_teacher))
    exact = model.encode(x, label)[0]
    for precision in ("no", "bf16"):

        def work(enabled: bool = precision == "bf16") -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
                return model.encode(x, label)[0]

        error = rms(work() - exact) / rms(exact)
        seconds = timed(work, scale.repeats)
        yield row(name_of(precision), count, seconds, cost, rates[precision], relative_rms_error=error)


def decoded(scale: Scale, _: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Decodes token by token, kernel by kernel and as a CUDA graph, and by chunks of tokens."""
    model = stirred(scale.make_teacher).eval()
    for count in scale.decoded:
        z, label = scale.images(count), scale.labels(count)
        exact = sample_teacher(model, z, label)
        alone = clocked(lambda z=z, label=label: sample_teacher(model, z, label), 1)
        yield row("token by token", count, alone)
        ways = {"token by token, replayed": TeacherSampler(model)}
        if count == min(scale.decoded):
            for chunk in scale.chunks:
                ways[f"chunk {chunk}, tolerance 0.0001"] = TeacherSampler(model, chunk=chunk, tolerance=1e-4)
        for how, sampler in ways.items():
            sampler(z, label)
            error = rms(sampler(z, label) - exact) / rms(exact)
            seconds = clocked(lambda sampler=sampler, z=z, label=label: sampler(z, label), 1)
            yield row(how, count, seconds, relative_rms_error=error, over_token_by_token=alone / seconds)


def sampled(scale: Scale, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    count, model = scale.batches["sample"], stirred(scale.make_student).eval()
    z, label, cost = scale.images(count), scale.labels(count), velocity_cost(on_meta(scale.make_student))
    ways: dict[str, tuple[Network, Precision]] = {
        "fp32": (model, "no"),
        "bf16": (fast(model, bf16=True, compile=False), "bf16"),
        "bf16 compiled": (fast(model, bf16=True, compile=True), "bf16"),
    }
    for nfe in (1, 4, 31):
        solver = Euler() if nfe < 5 else Heun()
        times, exact = grid("t2", steps_for(solver, nfe)), None
        for how, (network, precision) in ways.items():

            def work(network: Network = network, solver: Any = solver, times: Tensor = times) -> Tensor:
                return sample(lambda c: guided(network, c), z, label, solver, times, count).x

            found = work()
            exact = found if exact is None else exact
            seconds = clocked(work, 1) if how == "fp32" else timed(work, scale.repeats)
            total = Cost(nfe * cost.flops, nfe * cost.operations)
            error = rms(found - exact) / rms(exact)
            yield row(f"{how}, NFE {nfe}", count, seconds, total, rates[precision], relative_rms_error=error)


def rms(x: Tensor) -> float:
    """Returns the root of the mean square."""
    return x.square().mean().sqrt().item()


def kernels(work: Work) -> list[dict[str, Any]]:
    """Returns what takes most of a work's time on the device: its share of that, and how often it is called."""
    with torch.profiler.profile(acc_events=True) as found:
        work()
    kind, cuda = "self_cpu_time_total", device().type == "cuda"
    events = found.key_averages()
    if cuda:
        kind = "self_device_time_total"
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    whole = sum(getattr(event, kind) for event in events)
    most = sorted(events, key=lambda event: -getattr(event, kind))[:20]
    return [{"name": event.key[:120], "share": getattr(event, kind) / whole, "calls": event.count} for event in most]


WORKS: dict[str, Callable[[Scale, dict[str, float]], Iterator[dict[str, Any]]]] = {
    "teacher-train": partial(trained, "teacher-train", Scale.make_teacher, teacher_loss_on, likelihood_step_cost),
    "student-train": partial(trained, "student-train", Scale.make_student, student_loss_on, matching_step_cost),
    "encode": encoded,
    "decode": decoded,
    "sample": sampled,
}


if __name__ == "__main__":
    main()
