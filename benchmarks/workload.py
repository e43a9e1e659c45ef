"""What the trainings of a recipe ask of a GPU: counted FLOPs and bytes, at the speed that results/gpu.json measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cluster import Cluster, Gradient, Job, Pass, optimizer_seconds
from benchmarks.gpu import FULL
from nfm.artifacts import read_json
from nfm.build.student import make_student, student_arguments
from nfm.build.teacher import make_teacher, teacher_arguments
from nfm.config import Params
from nfm.errors import InputError
from nfm.plan.count import (
    Cost,
    encode_cost,
    likelihood_step_cost,
    matching_step_cost,
    on_meta,
    parameters,
)
from nfm.plan.size import Size, data_size
from nfm.plan.storage import HALF, USUAL, pair_bytes
from nfm.student.velocity import SiT
from nfm.teacher.tarflow import TarFlow

LABEL = 8  # bytes
WAYS = {  # a name of ours: the work's in results/gpu.json, and how it was done
    "teacher-train": ("teacher-train", "bf16 compiled"),
    "student-train": ("student-train", "bf16 compiled"),
    "encode": ("encode", "fp32"),
    "encode in bf16": ("encode", "bf16"),
}


@dataclass(frozen=True)
class Measured:
    """A work's speed on one GPU.

    Attributes:
        work: Its name in results/gpu.json.
        how: Its precision, and whether it was compiled.
        images_per_second: By the number of images at once.
        mfu: Likewise, the share of the rate of a large matrix product.
        rate: That rate, FLOP/s.
        device: The GPU's name.
        source: Where the figures are from.
    """

    work: str
    how: str
    images_per_second: dict[int, float]
    mfu: dict[int, float]
    rate: float
    device: str
    source: str

    @property
    def flops(self) -> float:
        """FLOPs of an image, as the rate of use counts them."""
        batch = min(self.mfu)
        return self.mfu[batch] * self.rate / self.images_per_second[batch]

    def scaled(self, cost: Cost, besides: float, cluster: Cluster) -> Pass:
        """Returns a pass of another network of that kind: arithmetic in proportion to FLOPs, the rest as it is.

        The time of a pass is a line through those of all batches that were measured, by least squares; of one batch, a
        line through the origin.

        Arguments:
            cost: Of an image in that network.
            besides: Seconds of what was measured with the pass and is no part of it.
            cluster: Says what launching takes.
        """
        batches = list(self.images_per_second)
        seconds = [n / speed - besides for n, speed in self.images_per_second.items()]
        mean, middle = sum(seconds) / len(seconds), sum(batches) / len(batches)
        spread = sum((n - middle) ** 2 for n in batches)
        slope = mean / middle
        if spread:
            pairs = zip(batches, seconds, strict=True)
            slope = min(slope, sum((n - middle) * (s - mean) for n, s in pairs) / spread)
        return Pass(slope * cost.flops / self.flops, mean - slope * middle, cost.operations * cluster.launch)


def read_measured(path: Path) -> dict[str, Measured]:
    """Returns the speeds by the names of WAYS.

    Raises:
        InputError: There is no such file, or a figure is not in it.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; run `python -m benchmarks.gpu` on a GPU, or name its result by --gpu")
    content, found = read_json(path), {}
    for name, (work, how) in WAYS.items():
        part = content.get(work, {"rows": []})
        rows = {row["batch"]: row for row in part["rows"] if row["how"] == how}
        if not rows:
            raise InputError(f"{path} has no row {how!r} of {work}; run `python -m benchmarks.gpu {work}` on a GPU")
        speeds, shares = ({n: row[key] for n, row in rows.items()} for key in ("images_per_second", "mfu"))
        rate = part["product_flops"][how.split()[0]]
        found[name] = Measured(work, how, speeds, shares, rate, part["machine"]["device"], path.name)
    return found


@dataclass(frozen=True)
class Training:
    """A training of a recipe.

    Attributes:
        name: "teacher", or "student" with how its noise is had.
        job: An update.
        steps: Updates.
        before: Images that the teacher encodes before it, for stored noise.
        encode: A pass of that; None for none.
    """

    name: str
    job: Job
    steps: int
    before: int = 0
    encode: Pass | None = None


def trainings(params: Params, measured: dict[str, Measured], cluster: Cluster) -> list[Training]:
    """Returns what a recipe trains: the teacher, and a student on stored noise and, in two precisions, online."""
    size = data_size(params.data, Path(), None, None)
    teacher = on_meta(lambda: make_teacher(teacher_arguments(params.teacher, size.shape, size.classes)))
    student = on_meta(lambda: make_student(student_arguments(params.student, size.shape, size.classes)))
    besides = {
        "teacher-train": optimizer_seconds(4 * parameters(on_meta(FULL.make_teacher)), cluster),
        "student-train": optimizer_seconds(4 * parameters(on_meta(FULL.make_student)), cluster),
        "encode": 0.0,
        "encode in bf16": 0.0,
    }
    costs = {
        "teacher-train": likelihood_step_cost(teacher),
        "student-train": matching_step_cost(student),
        "encode": encode_cost(teacher),
        "encode in bf16": encode_cost(teacher),
    }
    made = {work: measured[work].scaled(cost, besides[work], cluster) for work, cost in costs.items()}
    micro = params.run.micro_batch
    image = image_bytes(size)

    def job(model: TarFlow | SiT, work: str, batch: int) -> Job:
        forward, gradients = timeline(model)
        return Job(batch, micro or batch, made[work], forward, gradients, image)

    teaching = job(teacher, "teacher-train", params.teacher.train.batch)
    learning = job(student, "student-train", params.student.train.batch)
    noise, encode, steps = pair_bytes(size, 1) / size.train, made["encode"], params.student.train.steps
    return [
        Training("teacher", teaching, params.teacher.train.steps),
        Training("student, stored", replace(learning, noise=noise), steps, USUAL * size.train, encode),
        Training("student, online", replace(learning, encode=encode), steps),
        Training("student, online in bf16", replace(learning, encode=made["encode in bf16"]), steps),
    ]


def image_bytes(size: Size) -> int:
    """Returns the bytes of an image in uint8 or of a latent in float16, with its label."""
    return size.dimensions * (HALF if size.kept else 1) + LABEL


def timeline(model: TarFlow | SiT) -> tuple[float, tuple[Gradient, ...]]:
    """Returns the forward pass's share of an update's FLOPs, and when each gradient is there.

    Both are counted while a pass goes over a network on the meta device: the order is that of the real backward pass.
    """
    label = None if model.classes is None else torch.zeros(1, dtype=torch.long, device="meta")
    x = torch.zeros(1, *model.shape, device="meta")

    def loss() -> Tensor:
        if isinstance(model, SiT):
            return model(x, torch.zeros(1, device="meta"), label).square().mean()
        z, log_det = model(x, label)
        return z.square().mean() - log_det.mean()

    return counted(model, loss)


def counted(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[float, tuple[Gradient, ...]]:
    """Returns what `timeline` does of any network whose weights all enter a loss."""
    came: list[tuple[int, int]] = []
    with FlopCounterMode(display=False) as flops:

        def note(weight: Tensor) -> None:
            came.append((weight.numel() * weight.element_size(), flops.get_total_flops()))

        hooks: list[Any] = [weight.register_post_accumulate_grad_hook(note) for weight in model.parameters()]
        value = loss()
        forward = flops.get_total_flops()
        value.backward()
        whole = flops.get_total_flops()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    assert len(came) == len(hooks)
    return forward / whole, tuple(Gradient(size, (at - forward) / (whole - forward)) for size, at in came)
