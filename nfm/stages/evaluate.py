"""evaluate: samples of a student, or of the teacher, measured against the test images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from nfm.artifacts import save_tensors
from nfm.build.checks import check_shape
from nfm.build.features import Measure, load_measure
from nfm.build.solve import make_solver
from nfm.build.student import load_student
from nfm.build.teacher import TrainedTeacher, load_teacher
from nfm.config import Evaluate, Params
from nfm.data.shards import Split, to_uint8
from nfm.metrics.transport import curvature, trajectory
from nfm.random import generator_for
from nfm.solve.sample import initial_noise, sample
from nfm.solve.solvers import grid, steps_for
from nfm.stages.run import StageRun, stage_run
from nfm.student.velocity import SiT, guided
from nfm.teacher.denoise import denoise, sample_teacher
from nfm.teacher.loss import bits_per_dim

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
    with _evaluation(f"evaluate@{item}", root, params, weights, tags) as (run, measure, test):
        model = load_student(weights, run.device)
        check_shape(weights, model.shape, test.shape)
        noise, label = _noise_and_labels(section, test, run.device)
        label = label if model.classes else None
        metrics: dict[str, dict[str, float]] = {}
        kept: dict[str, Tensor] = {}
        for solver, nfe in _settings(section):
            images = _samples(model, noise, label, (solver, nfe), params)
            values = asdict(measure.fidelity(images)) | measure.accuracy(images, label)
            for name, value in values.items():
                metrics.setdefault(name, {})[f"{solver}-{nfe}"] = value
            kept[f"samples-{solver}-{nfe}"] = images[_shown(label)]
            _track(run, values, solver, nfe, section)
        kappa = _curvature(model, noise, label, params)
        run.report({"curvature": kappa}, 0)
        run.write_metrics(f"evaluate/{item}", metrics | {"curvature": kappa})
        kept["paths"] = _paths(model, noise, label, section)
        _keep(run, root / "artifacts" / "evaluate" / item, kept)


def evaluate_teacher(root: Path, params: Params, seed: int) -> None:
    """Writes the teacher's measures and artifacts/evaluate/samples-of-teacher-<seed>/."""
    section = params.evaluate
    weights = root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"
    with _evaluation(f"evaluate-teacher@{seed}", root, params, weights, {"seed": seed}) as opened:
        run, measure, test = opened
        teacher = load_teacher(weights, run.device)
        check_shape(weights, teacher.model.shape, test.shape)
        noise, label = _noise_and_labels(section, test, run.device)
        label = label if teacher.conditional else None
        start = time.perf_counter()
        raw, clean = _teacher_samples(teacher, noise, label, params.run.sample_batch)
        seconds = (time.perf_counter() - start) / len(noise)
        images = {"raw": to_uint8(raw), "denoised": to_uint8(clean)}
        metrics = {
            "bits_per_dim": _held_out_bits(teacher, test, params, run.device),
            "fd_raw": measure.fidelity(images["raw"]).fd,
            "fd_denoised": measure.fidelity(images["denoised"]).fd,
            "seconds_per_image": seconds,
        }
        run.report(metrics, 0)
        run.write_metrics(f"evaluate-teacher/{seed}", metrics)
        kept = {f"samples-{name}": value[_shown(label)] for name, value in images.items()}
        _keep(run, root / "artifacts" / "evaluate" / f"samples-of-teacher-{seed}", kept)


@contextmanager
def _evaluation(
    address: str, root: Path, params: Params, weights: Path, tags: dict[str, object]
) -> Iterator[tuple[StageRun, Measure, Split]]:
    """Opens the stage with its measure against the test images."""
    data = root / "artifacts" / "data" / "test"
    features = root / "artifacts" / "features" / "features.safetensors"
    test = Split.open(data, verify=True)
    with stage_run(
        address,
        root,
        params,
        sections={"evaluate": params.evaluate},
        inputs=[data / "manifest.json", features, weights],
        tags=tags,
    ) as run:
        yield run, load_measure(params.evaluate, root, features, test, run.device), test


def _settings(section: Evaluate) -> list[Setting]:
    return [("euler", nfe) for nfe in section.euler] + [("heun", nfe) for nfe in section.heun]


def _noise_and_labels(section: Evaluate, test: Split, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Draws what all couplings and seeds share: noise, and labels as frequent as in the test set."""
    noise = initial_noise(section.samples, test.shape, section.seed)
    order = torch.randperm(len(test), generator=generator_for(section.seed, 0, 1))
    label = test.labels(order[torch.arange(section.samples) % len(test)])
    return noise.to(device), None if label is None else label.to(device)


def _shown(label: Tensor | None) -> Tensor:
    """Returns the rows that are kept for figures: the first of each class, or the first few."""
    if label is None:
        return torch.arange(SHOWN)
    classes = label.unique()[:SHOWN]
    return torch.stack([(label == c).nonzero()[0, 0] for c in classes]).cpu()


def _samples(model: SiT, noise: Tensor, label: Tensor | None, setting: Setting, params: Params) -> Tensor:
    """Returns the student's samples as pixels; the evaluations that it took are the NFE asked for."""
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
    return to_uint8(solution.x).cpu()


def _curvature(model: SiT, noise: Tensor, label: Tensor | None, params: Params) -> float:
    velocity = guided(model, None if label is None else label[:CURVED], params.evaluate.guidance)
    return curvature(velocity, noise[:CURVED], steps=params.evaluate.curvature_steps)


def _paths(model: SiT, noise: Tensor, label: Tensor | None, section: Evaluate) -> Tensor:
    """Returns some Euler paths in a random plane that all students share, shape (S + 1, B, 2)."""
    velocity = guided(model, None if label is None else label[:PATHS], section.guidance)
    points = trajectory(velocity, noise[:PATHS], grid("uniform", PATH_STEPS)).flatten(2).cpu()
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


def _teacher_samples(teacher: TrainedTeacher, noise: Tensor, label: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """Returns the teacher's samples as they are decoded, and after the denoising step."""
    raw, clean = [], []
    labels = [None] * len(noise.split(batch)) if label is None else label.split(batch)
    for z, c in zip(noise.split(batch), labels, strict=True):
        raw.append(sample_teacher(teacher.model, z, c))
        clean.append(denoise(teacher.model, raw[-1], c, teacher.noise_std))
    return torch.cat(raw).cpu(), torch.cat(clean).cpu()


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
