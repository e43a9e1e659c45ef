"""Two students under one measure: the same held-out images, noise and labels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nfm.build.measure import BATCH, Measure
from nfm.build.solve import make_solver
from nfm.build.student import TrainedStudent
from nfm.config import Evaluate, Promote
from nfm.errors import InputError
from nfm.metrics.features import count_right
from nfm.metrics.fidelity import extract, frechet
from nfm.metrics.statistics import Accumulator
from nfm.solve.draws import Draws
from nfm.solve.sample import sample
from nfm.solve.solvers import grid, steps_for
from nfm.student.velocity import guided

FIRST_SEED = 1000  # of the evaluations, whose noise is so none that `evaluate` has shown


@dataclass(frozen=True)
class Measured:
    """What the samples of a student showed.

    Attributes:
        fd: To the held-out images, by evaluation and NFE; infinite where too few samples were finite.
        accuracy: Share of the samples that the classifier puts in the class asked for; None without labels.
        broken: Samples with a value that is not finite; they are left out of the rest.
        features: Of the first evaluation's samples at the last NFE, with shape (N, F).
    """

    fd: list[list[float]]
    accuracy: float | None
    broken: int
    features: Tensor


def settings_of(section: Promote, *, one_step: bool) -> tuple[str, tuple[int, ...]]:
    """Returns solver and NFEs; where a student takes a single step, that one alone.

    Raises:
        InputError: It does, and NFE 1 is not among those of the section.
    """
    if not one_step:
        return section.solver, section.nfe
    if 1 not in section.nfe:
        raise InputError(
            f"promote.nfe is {list(section.nfe)}, but a student of one step is measured at NFE 1 only; add 1 to it"
        )
    return "euler", (1,)


def measure_student(
    student: TrainedStudent,
    measure: Measure,
    setting: tuple[str, tuple[int, ...]],
    promote: Promote,
    evaluate: Evaluate,
    *,
    batch: int,
    device: torch.device,
) -> Measured:
    """Samples a student in every evaluation and measures it.

    Arguments:
        student: The student.
        measure: Features and held-out images.
        setting: Solver and NFEs, from `settings_of`.
        promote: How many samples in how many evaluations.
        evaluate: Guidance and grid of times.
        batch: Samples at once.
        device: Where to compute.
    """
    fd: list[list[float]] = []
    right = counted = broken = 0
    features = torch.zeros(0, 0)
    labels = measure.test.labels if student.model.classes else None
    for number in range(promote.evaluations):
        draws = Draws(promote.samples, measure.test.learnt, FIRST_SEED + number, labels, device)
        fd.append([])
        for nfe in setting[1]:
            accumulator = Accumulator()
            for noise, label in draws.parts(batch):
                x = _samples(student, noise, label, (setting[0], nfe), evaluate, batch)
                whole = x.flatten(1).isfinite().all(dim=1)
                broken += int((~whole).sum())
                if not whole.any():
                    continue
                images = measure.pixels(x[whole])
                accumulator.add(extract(measure.ruler.extractor, images, BATCH))
                if label is not None:
                    right += count_right(measure.classifier, images, label[whole])
                    counted += len(images)
            fd[-1].append(_distance(measure, accumulator))
            if number == 0 and math.isfinite(fd[-1][-1]):
                features = accumulator.statistics().rows
    return Measured(fd, right / counted if counted else None, broken, features)


def _samples(
    student: TrainedStudent,
    noise: Tensor,
    label: Tensor | None,
    setting: tuple[str, int],
    section: Evaluate,
    batch: int,
) -> Tensor:
    solver = make_solver(setting[0])
    times = grid(section.grid, steps_for(solver, setting[1]))
    return sample(lambda c: guided(student.model, c, section.guidance), noise, label, solver, times, batch).x


def _distance(measure: Measure, accumulator: Accumulator) -> float:
    try:
        return frechet(measure.test.statistics, accumulator.statistics())
    except ValueError:  # fewer than two samples are finite
        return math.inf
