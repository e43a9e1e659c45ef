"""Training, encoding, decoding and sampling on one GPU at the size of ImageNet 64: writes results/gpu.json.

`python -m benchmarks.gpu` wants a GPU; `--small` runs the same on tiny networks anywhere, to see whether it runs, and
writes nothing unless told where. A rate of use (MFU) is the FLOPs of a network, counted, over the time that the device
would take for them at the rate of a large matrix product of the same precision, measured in the same run.
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
from nfm.artifacts import write_json
from nfm.plan.count import Cost, encode_cost, likelihood_step_cost, matching_step_cost, on_meta, velocity_cost
from nfm.random import generator_for
from nfm.solve.sample import sample
from nfm.solve.solvers import Euler, Heun, grid, steps_for
from nfm.student.fast import Network, fast
from nfm.student.loss import student_loss
from nfm.student.velocity import SiT, guided
from nfm.teacher.denoise import sample_teacher
from nfm.teacher.loss import teacher_loss
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
        batches: Images at once: of an update of the teacher and of the student, encoded, decoded, sampled.
        chunks: Tokens decoded at once.
        product: Side of the matrices whose product gives the device's rate.
        repeats: Times that each work is done, after two that are not counted.
    """

    teacher: dict[str, Any]
    student: dict[str, Any]
    batches: dict[str, int]
    chunks: tuple[int, ...]
    product: int
    repeats: int

    def make_teacher(self) -> TarFlow:
        return TarFlow(**self.teacher, classes=CLASSES)

    def make_student(self) -> SiT:
        return SiT(**self.student, classes=CLASSES)

    def images(self, work: str) -> Tensor:
        return torch.randn(self.batches[work], *self.teacher["shape"], generator=generator_for(0)).to(device())

    def labels(self, work: str) -> Tensor:
        return (torch.arange(self.batches[work]) % CLASSES).to(device())


IMAGE = {"shape": (3, 64, 64), "patch": (4, 4)}  # 256 tokens
FULL = Scale(
    IMAGE | {"blocks": 8, "layers": 8, "width": 768, "head_size": 64},
    IMAGE | {"depth": 28, "width": 1152, "head_size": 72},  # SiT-XL/4
    {"teacher-train": 32, "student-train": 64, "encode": 128, "decode": 64, "sample": 64},
    (1, 16, 64, 255),
    8192,
    5,
)
TINY = {"shape": (3, 16, 16), "patch": (4, 4)}
SMALL = Scale(
    TINY | {"blocks": 2, "layers": 1, "width": 32, "head_size": 16},
    TINY | {"depth": 2, "width": 32, "head_size": 16},
    dict.fromkeys(FULL.batches, 4),
    (1, 4, 15),
    256,
    1,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny networks, on any device")
    parser.add_argument("--to", type=Path, help="file for the figures; results/gpu.json by default, for --small none")
    given = parser.parse_args()
    if not given.small and device().type != "cuda":
        print("benchmarks.gpu: there is no GPU; run --small to see whether it runs", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    to = given.to or (None if given.small else RESULT)
    found = measured(SMALL if given.small else FULL)
    for row in found["rows"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if to is not None:
        write_json(to, found)


def measured(scale: Scale) -> dict[str, Any]:
    """Measures everything at a scale."""
    rates = {precision: product_rate(scale.product, precision) for precision in ("no", "bf16")}
    rows = [
        *trained("teacher-train", scale, rates, scale.make_teacher, teacher_loss_on, likelihood_step_cost),
        *trained("student-train", scale, rates, scale.make_student, student_loss_on, matching_step_cost),
        *encoded(scale, rates),
        *decoded(scale),
        *sampled(scale, rates),
    ]
    return {
        "machine": machine(),
        "product_flops": {name_of(precision): rate for precision, rate in rates.items()},
        "rows": rows,
        "profile": profile(scale),
    }


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
    name: str, how: str, images: int, seconds: float, cost: Cost | None = None, rate: float = 1.0, **more: float
) -> dict[str, Any]:
    """Returns one figure: images a second, the rate of use where FLOPs are counted, the memory at the most."""
    found: dict[str, Any] = {"name": name, "how": how, "batch": images, "images_per_second": images / seconds}
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
    scale: Scale,
    rates: dict[str, float],
    make: Callable[[], Any],
    loss_on: Callable[[Tensor, Tensor], Any],
    cost_of: Callable[[Any], Cost],
) -> Iterator[dict[str, Any]]:
    """Times the pipeline's own update: loss, gradient, clipping, AdamW, moving average."""
    x, label, cost = scale.images(name), scale.labels(name), cost_of(on_meta(make))
    for compile in (False, True):
        update = updates(stirred(make), loss_on(x, label), len(x), (0.9, 0.95), "bf16", compile)
        how = "bf16 compiled" if compile else "bf16"
        yield row(name, how, len(x), timed(update, scale.repeats), cost, rates["bf16"])


@torch.no_grad()
def encoded(scale: Scale, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    model, x, label = stirred(scale.make_teacher).eval(), scale.images("encode"), scale.labels("encode")
    cost = encode_cost(on_meta(scale.make_teacher))
    exact = model.encode(x, label)[0]
    for precision in ("no", "bf16"):

        def work(enabled: bool = precision == "bf16") -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
                return model.encode(x, label)[0]

        error = (work() - exact).square().mean().sqrt().item()
        seconds = timed(work, scale.repeats)
        yield row("encode", name_of(precision), len(x), seconds, cost, rates[precision], rms_error=error)


def decoded(scale: Scale) -> Iterator[dict[str, Any]]:
    """Decodes by chunks of tokens; the deviation is from one token after the other."""
    model, z, label = stirred(scale.make_teacher).eval(), scale.images("decode"), scale.labels("decode")
    exact, alone = sample_teacher(model, z, label), None
    for chunk in scale.chunks:
        for tolerance in (0.0,) if chunk == 1 else (0.0, 1e-4):
            work = partial(sample_teacher, model, z, label, chunk=chunk, tolerance=tolerance)
            error = (work() - exact).abs().max().item()
            seconds = timed(work, 1)
            alone = alone or seconds
            how = f"chunk {chunk}, tolerance {tolerance:g}"
            yield row("decode", how, len(z), seconds, max_error=error, over_sequential=alone / seconds)


def sampled(scale: Scale, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    model, z, label = stirred(scale.make_student).eval(), scale.images("sample"), scale.labels("sample")
    cost = velocity_cost(on_meta(scale.make_student))
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
                return sample(lambda c: guided(network, c), z, label, solver, times, len(z)).x

            exact = work() if exact is None else exact
            error = (work() - exact).square().mean().sqrt().item()
            total = Cost(nfe * cost.flops, nfe * cost.operations)
            seconds = timed(work, scale.repeats)
            yield row("sample", f"{how}, NFE {nfe}", len(z), seconds, total, rates[precision], rms_error=error)


def profile(scale: Scale) -> list[dict[str, Any]]:
    """Returns the kernels that take most of a student's update."""
    x, label = scale.images("student-train"), scale.labels("student-train")
    update = updates(stirred(scale.make_student), student_loss_on(x, label), len(x), (0.9, 0.95), "bf16", False)
    update()
    with torch.profiler.profile() as found:
        update()
    kind = "self_device_time_total" if device().type == "cuda" else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, kind))[:20]
    whole = sum(getattr(event, kind) for event in found.key_averages())
    return [{"name": event.key, "share": getattr(event, kind) / whole, "calls": event.count} for event in events]


if __name__ == "__main__":
    main()
