"""evaluate: samples of a student, or of the teacher, measured against the test and the training images."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfm.artifacts import save_tensors
from nfm.build.checks import check_shape
from nfm.build.measure import SPLITS, Measure, Reference, Tally, features_path, load_measure, reference_path
from nfm.build.solve import make_solver
from nfm.build.student import load_student
from nfm.build.teacher import TrainedTeacher, load_teacher
from nfm.config import Evaluate, Params
from nfm.data.shards import Split
from nfm.metrics.transport import curvature, trajectory
from nfm.nn.compiler import require_compiler
from nfm.random import generator_for
from nfm.solve.draws import Draws
from nfm.solve.sample import sample
from nfm.solve.solvers import grid, steps_for
from nfm.stages.run import StageRun, stage_run
from nfm.stages.turns import by_turns
from nfm.student.fast import Network, fast
from nfm.student.velocity import SiT, guided
from nfm.teacher.denoise import denoise
from nfm.teacher.loss import bits_per_dim
from nfm.teacher.sampler import TeacherSampler

SHOWN = 10  # samples kept for the report, one a class where there are that many
PATHS = 24  # trajectories kept for the report
PATH_STEPS = 32
CURVED = 256  # trajectories that the curvature is a mean over; with 128 steps each it costs most otherwise

Setting = tuple[str, int]  # a solver's name and its NFE


def evaluate_student(root: Path, params: Params, coupling: str, seed: int) -> None:
    """Writes the measures of one student and artifacts/evaluate/<coupling>-<seed>/."""
    section, item = params.evaluate, f"{coupling}-{seed}"
    weights = root / "artifacts" / "student" / item / "student.safetensors"
    tags = {"coupling": coupling, "seed": seed}
    with _evaluation(f"evaluate@{item}", root, params, [weights], tags) as (run, measure):
        student = load_student(weights, run.device)
        model = student.model
        network = _network(model, section)
        check_shape(weights, model.shape, measure.test.learnt)
        draws = _draws(section, measure.test, bool(model.classes), run.device)
        metrics: dict[str, Any] = {"yardstick": measure.yardstick}
        kept: dict[str, Tensor] = {}
        if section.compile:
            for noise, label in draws.parts(params.run.sample_batch):
                _samples(network, noise, label, ("euler", 1), params)  # so that compiling is not timed
        for solver, nfe in [("euler", 1)] if student.one_step else _settings(section):
            tally, seconds = _student_tally(network, (solver, nfe), draws, measure, params, run.main)
            if not run.main:
                continue
            metrics.setdefault("seconds_per_image", {})[f"{solver}-{nfe}"] = seconds
            figures = tally.figures()
            for name, value in figures.items():
                metrics.setdefault(measure.names.get(name, name), {})[f"{solver}-{nfe}"] = value
            kept[f"samples-{solver}-{nfe}"] = tally.images()
            _track(run, figures | {full: figures[name] for name, full in measure.names.items()}, solver, nfe, section)
        if run.main and not student.one_step:
            metrics["curvature"] = _curvature(model, *draws.first(CURVED), section)
            run.report({"curvature": metrics["curvature"]}, 0)
            kept["paths"] = _paths(model, *draws.first(PATHS), section)
        run.write_metrics(f"evaluate/{item}", metrics)
        _keep(run, root / "artifacts" / "evaluate" / item, kept)


def evaluate_teacher(root: Path, params: Params, seed: int) -> None:
    """Writes the teacher's measures and artifacts/evaluate/samples-of-teacher-<seed>/."""
    weights = root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"
    data = root / "artifacts" / "data" / "test"
    test = Split.open(data, verify=True)
    inputs = [weights, data / "manifest.json"]
    with _evaluation(f"evaluate-teacher@{seed}", root, params, inputs, {"seed": seed}) as (run, measure):
        teacher = load_teacher(weights, run.device)
        for learnt in (test.shape, measure.test.learnt):
            check_shape(weights, teacher.model.shape, learnt)
        draws = _draws(params.evaluate, measure.test, teacher.conditional, run.device)
        tallies, seconds = _teacher_tallies(teacher, draws, measure, params, run.main)
        if not run.main:
            return
        figures = {name: tally.figures() for name, tally in tallies.items()}
        metrics: dict[str, Any] = {
            "bits_per_dim": _held_out_bits(teacher, test, params, run.device),
            "seconds_per_image": seconds,
        }
        run.report(metrics | {f"fd_{name}": values["fd"] for name, values in figures.items()}, 0)
        for key, full in measure.names.items():
            metrics[full] = {name: values[key] for name, values in figures.items()}
            run.report({f"{full}_{name}": value for name, value in metrics[full].items()}, 0)
        run.write_metrics(f"evaluate-teacher/{seed}", metrics | {"yardstick": measure.yardstick})
        kept = {f"samples-{name}": tally.images() for name, tally in tallies.items()}
        _keep(run, root / "artifacts" / "evaluate" / f"samples-of-teacher-{seed}", kept)


@contextmanager
def _evaluation(
    address: str, root: Path, params: Params, inputs: Sequence[Path], tags: dict[str, object]
) -> Iterator[tuple[StageRun, Measure]]:
    """Opens the stage with its measure against the references."""
    with stage_run(
        address,
        root,
        params,
        sections={"evaluate": params.evaluate},
        inputs=[*(reference_path(root, split) for split in SPLITS), features_path(root), *inputs],
        tags=tags,
    ) as run:
        yield run, load_measure(params.evaluate, root, run.device)


def _draws(section: Evaluate, test: Reference, conditional: bool, device: torch.device) -> Draws:
    """Returns what all couplings and seeds share: noise, and labels as frequent as in the test set."""
    return Draws(section.samples, test.learnt, section.seed, test.labels if conditional else None, device)


def _settings(section: Evaluate) -> list[Setting]:
    return [("euler", nfe) for nfe in section.euler] + [("heun", nfe) for nfe in section.heun]


def _network(model: SiT, section: Evaluate) -> Network:
    """Returns what samples; the curvature and the paths that are shown are the plain model's."""
    bf16 = section.precision == "bf16"
    if section.compile:
        require_compiler("evaluate.compile")
    return fast(model, bf16=bf16, compile=section.compile) if bf16 or section.compile else model


def _student_tally(
    network: Network, setting: Setting, draws: Draws, measure: Measure, params: Params, main: bool
) -> tuple[Tally, float]:
    """Counts in the student's samples at a setting, on the main process; seconds per sample."""
    tally, seconds = measure.tally(draws.shown(SHOWN)), 0.0

    def make(noise: Tensor, label: Tensor | None) -> tuple[Tensor, float]:
        start = time.perf_counter()
        images = measure.pixels(_samples(network, noise, label, setting, params))
        return images, time.perf_counter() - start

    for (images, spent), label in by_turns(draws, params.run.sample_batch, make):
        seconds += spent
        if main:
            tally.add(images, label)
    return tally, seconds / draws.count


def _samples(model: Network, noise: Tensor, label: Tensor | None, setting: Setting, params: Params) -> Tensor:
    """Returns the student's samples; the evaluations that it took are the NFE asked for."""
    name, nfe = setting
    solver = make_solver(name)
    solution = sample(
        lambda label: guided(model, label, params.evaluate.guidance),
        noise,
        label,
        solver,
        grid(params.evaluate.grid, steps_for(solver, nfe)),
        params.run.sample_batch,
    )
    assert solution.nfe == nfe
    return solution.x


def _curvature(model: SiT, noise: Tensor, label: Tensor | None, section: Evaluate) -> float:
    return curvature(guided(model, label, section.guidance), noise, steps=section.curvature_steps)


def _paths(model: SiT, noise: Tensor, label: Tensor | None, section: Evaluate) -> Tensor:
    """Returns some Euler paths in a random plane that all students share, shape (S + 1, B, 2)."""
    points = trajectory(guided(model, label, section.guidance), noise, grid("uniform", PATH_STEPS)).flatten(2).cpu()
    plane = torch.randn(points.shape[2], 2, generator=generator_for(section.seed, 0, 2))
    return points @ torch.linalg.qr(plane).Q


@torch.no_grad()
def _held_out_bits(teacher: TrainedTeacher, test: Split, params: Params, device: torch.device) -> float:
    """Returns the mean bits per dimension of the test images plus the teacher's noise."""
    total = 0.0
    for rows in torch.arange(len(test)).split(params.run.sample_batch):
        eps = torch.stack(
            [torch.randn(test.shape, generator=generator_for(params.evaluate.seed, 0, 3, row)) for row in rows.tolist()]
        )
        x = (test.images(rows) + teacher.noise_std * eps).to(device)
        label = test.labels(rows) if teacher.conditional else None
        bits = bits_per_dim(teacher.model, x, None if label is None else label.to(device))
        total += bits.double().sum().item()
    return total / len(test)


def _teacher_tallies(
    teacher: TrainedTeacher, draws: Draws, measure: Measure, params: Params, main: bool
) -> tuple[dict[str, Tally], float]:
    """Counts in the teacher's samples, raw and denoised, on the main process; seconds per sample."""
    tallies = {name: measure.tally(draws.shown(SHOWN)) for name in ("raw", "denoised")}
    seconds = 0.0
    sampler = TeacherSampler(teacher.model, **params.evaluate.decode.model_dump())

    def make(noise: Tensor, label: Tensor | None) -> tuple[dict[str, Tensor], float]:
        start = time.perf_counter()
        raw = sampler(noise, label)
        clean = denoise(teacher.model, raw, label, teacher.noise_std)
        images = {"raw": measure.pixels(raw), "denoised": measure.pixels(clean)}
        return images, time.perf_counter() - start

    for (images, spent), label in by_turns(draws, params.run.sample_batch, make):
        seconds += spent
        for name, tally in tallies.items() if main else ():
            tally.add(images[name], label)
    return tallies, seconds / draws.count


def _track(run: StageRun, values: dict[str, float], solver: str, nfe: int, section: Evaluate) -> None:
    """Reports a metric by NFE, so that MLflow draws the curve; Euler's where both solvers measure."""
    twice = solver == "heun" and nfe in section.euler
    run.report({f"{k}_{solver}" if twice else k: v for k, v in values.items()}, nfe)


def _keep(run: StageRun, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Writes samples and paths for the report, and a grid of the samples for the tracker."""
    from nfm.figures import sample_grid

    if not run.main:
        return
    save_tensors(folder / "samples.safetensors", tensors, {"format": "nfm-samples-1"})
    grids = {k.removeprefix("samples-"): v for k, v in tensors.items() if k.startswith("samples-")}
    path = folder / "samples.png"
    sample_grid(torch.stack(list(grids.values())), list(grids), [], path)
    run.tracker.image(path, "samples.png")
