"""evaluate: samples of a student, or of the teacher, measured against the test images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from nfm.artifacts import save_tensors
from nfm.build.features import Measure, load_measure
from nfm.build.solve import make_solver
from nfm.build.student import load_student
from nfm.build.teacher import TrainedTeacher, load_teacher
from nfm.config import Evaluate, Params
from nfm.data.shards import Split, to_uint8
from nfm.figures import sample_grid
from nfm.metrics.transport import curvature, trajectory
from nfm.random import generator_for
from nfm.solve.sample import initial_noise, sample
from nfm.solve.solvers import grid, steps_for
from nfm.stages.run import StageRun, stage_run
from nfm.student.velocity import SiT, guided
from nfm.teacher.denoise import denoise, sample_teacher
from nfm.teacher.loss import bits_per_dim

SHOWN = 10  # samples kept for the report, of ten classes where there are as many
PATHS = 24  # trajectories kept for the report


def evaluate_student(root: Path, params: Params, coupling: str, seed: int) -> None:
    """Writes the measures of one student and artifacts/evaluate/<coupling>-<seed>/."""
    section, item = params.evaluate, f"{coupling}-{seed}"
    weights = root / "artifacts" / "student" / item / "student.safetensors"
    tags = {"coupling": coupling, "seed": seed}
    with _evaluation(f"evaluate@{item}", root, params, weights, tags) as (run, measure, test):
        model = load_student(weights, run.device)
        noise, label = _noise_and_labels(section, test)
        metrics: dict[str, dict[str, float]] = {}
        kept: dict[str, Tensor] = {}
        for solver, nfe in _settings(section):
            images = _samples(model, noise, label, solver, nfe, params)
            values = asdict(measure.fidelity(images)) | measure.accuracy(images, label)
            for name, value in values.items():
                metrics.setdefault(name, {})[f"{solver}-{nfe}"] = value
            kept[f"samples-{solver}-{nfe}"] = images[_shown(label)]
            _track(run, values, solver, nfe)
        velocity = guided(model, label, section.guidance)
        kappa = curvature(velocity, noise, steps=section.curvature_steps)
        kept["paths"] = _paths(model, noise, label, section)
        run.report({"curvature": kappa}, 0)
        run.write_metrics(f"evaluate/{item}", metrics | {"curvature": kappa})
        _keep(run, root / "artifacts" / "evaluate" / item, kept)


def evaluate_teacher(root: Path, params: Params, seed: int) -> None:
    """Writes the teacher's measures and artifacts/evaluate/samples-of-teacher-<seed>/."""
    section = params.evaluate
    weights = root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"
    tags = {"seed": seed}
    with _evaluation(f"evaluate-teacher@{seed}", root, params, weights, tags) as opened:
        run, measure, test = opened
        teacher = load_teacher(weights, run.device)
        noise, label = _noise_and_labels(section, test)
        start = time.perf_counter()
        raw, denoised = _teacher_samples(teacher, noise, label, params.run.sample_batch)
        seconds = (time.perf_counter() - start) / len(noise)
        metrics = {
            "bits_per_dim": _held_out_bits(teacher, test, section.seed),
            "fd_raw": measure.fidelity(raw).fd,
            "fd_denoised": measure.fidelity(denoised).fd,
            "seconds_per_image": seconds,
        }
        run.report(metrics, 0)
        run.write_metrics(f"evaluate-teacher/{seed}", metrics)
        shown = _shown(label)
        kept = {"samples-raw": raw[shown], "samples-denoised": denoised[shown]}
        _keep(run, root / "artifacts" / "evaluate" / f"samples-of-teacher-{seed}", kept)


@contextmanager
def _evaluation(
    address: str, root: Path, params: Params, weights: Path, tags: dict[str, object]
) -> Iterator[tuple[StageRun, Measure, Split]]:
    """Opens the stage with the measure against the test images."""
    data = root / "artifacts" / "data" / "test"
    features = root / "artifacts" / "features" / "features.safetensors"
    test = Split.open(data)
    with stage_run(
        address,
        root,
        params,
        sections={"evaluate": params.evaluate},
        inputs=[data / "manifest.json", features, weights],
        tags=tags,
    ) as run:
        yield run, load_measure(params.evaluate, root, features, test, run.device), test


def _settings(section: Evaluate) -> list[tuple[str, int]]:
    return [("euler", nfe) for nfe in section.euler] + [("heun", nfe) for nfe in section.heun]


def _noise_and_labels(section: Evaluate, test: Split) -> tuple[Tensor, Tensor | None]:
    """Draws what all couplings and seeds share: noise, and labels as frequent as in the test set."""
    noise = initial_noise(section.samples, test.shape, section.seed)
    order = torch.randperm(len(test), generator=generator_for(section.seed, 1))
    return noise, test.labels(order[torch.arange(section.samples) % len(test)])


def _shown(label: Tensor | None) -> Tensor:
    """Returns the rows that are kept for figures: the first of each class, or the first few."""
    if label is None:
        return torch.arange(SHOWN)
    classes = label.unique()[:SHOWN]
    return torch.stack([(label == c).nonzero()[0, 0] for c in classes])


def _samples(
    model: SiT, noise: Tensor, label: Tensor | None, solver: str, nfe: int, params: Params
) -> Tensor:
    """Returns the student's samples as uint8 images."""
    section = params.evaluate
    method = make_solver(solver)
    solution = sample(
        lambda label: guided(model, label, section.guidance),
        noise,
        label,
        method,
        grid(section.grid, steps_for(method, nfe)),
        params.run.sample_batch,
    )
    if solution.nfe != nfe:
        raise AssertionError(f"{solver} used {solution.nfe} evaluations, planned were {nfe}")
    return to_uint8(solution.x)


def _teacher_samples(
    teacher: TrainedTeacher, noise: Tensor, label: Tensor | None, batch: int
) -> tuple[Tensor, Tensor]:
    """Returns the teacher's samples as uint8 images, raw and after the denoising step."""
    raw, clean = [], []
    label = label if teacher.conditional else None
    labels = [None] * len(noise.split(batch)) if label is None else label.split(batch)
    for z, c in zip(noise.split(batch), labels, strict=True):
        y = sample_teacher(teacher.model, z, c)
        raw.append(to_uint8(y))
        clean.append(to_uint8(denoise(teacher.model, y, c, teacher.noise_std)))
    return torch.cat(raw), torch.cat(clean)
