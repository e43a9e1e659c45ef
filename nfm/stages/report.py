"""report: the summary that git keeps, its tables, the figures and the HTML page."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from nfm.artifacts import atomic_path, load_tensors, read_json, write_json
from nfm.config import Params
from nfm.cost import Rates, enough, of_stages, of_students, pays_after
from nfm.metrics.yardstick import MEASURES, Yardstick, shared_yardstick
from nfm.report.assemble import write_report
from nfm.report.csv import write_csvs
from nfm.report.headline import headline
from nfm.stages.run import stage_run
from nfm.tracker import record_of

TEACHER = "teacher"
CARD = ("c2st", "c2st_error", "round_trip", "sigma", "mean_drift", "variance_drift")


def report(root: Path, params: Params) -> None:
    """Writes results/summary.json, results/*.csv and report/index.html; prints the headline."""
    with stage_run("report", root, params, sections={"evaluate": params.evaluate}) as run:
        if not run.main:
            return
        summary = summarise(root, params)
        write_json(root / "results" / "summary.json", summary)
        write_csvs(summary, root / "results")
        samples, projected = load_samples(root, params)
        write_report(
            summary,
            root / "report",
            samples=samples,
            projected=projected,
            moments=load_moments(root, params),
            records=_records(root, params),
        )
        for name in ("summary.json", "fd.csv", "seconds.csv"):
            run.tracker.artifact(root / "results" / name, name)
        run.tracker.artifact(root / "report" / "index.html", "report.html")
        run.tracker.image(root / "report" / "fd.png", "fd.png")
        text = headline(summary)
        with atomic_path(root / "report" / "headline.txt") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(text)


def summarise(root: Path, params: Params) -> dict[str, Any]:
    """Joins the metrics of all seeds and couplings; of a student that takes one step there is NFE 1 alone.

    Returns:
        By name: "metric", the distance's full name, and "names", those of all measures; "fd" (to the test images,
        "fd_train" to the training images), "kid" and the like as {coupling: {nfe: [a value per seed]}}, "curvature" as
        {coupling: [..]}, "teacher" and "coupling" as means over seeds (the gate has a verdict each), None without a
        teacher, "seconds" as {stage: seconds}, "cost" as `_cost` has it, "mean" over seeds of the distance and of the
        curvature (`dvc metrics diff` shows single numbers and no lists). At an NFE that both solvers measure the figure
        is Euler's; Heun's at 5 is in "fd_heun_5".
    """
    measured = {
        name: [read_json(root / "metrics" / "evaluate" / f"{name}-{seed}.json") for seed in params.seeds]
        for name in params.couplings
    }
    features, reference = (read_json(root / "metrics" / f"{name}.json") for name in ("features", "reference"))
    yardstick = _yardstick(root, params, measured, reference)
    names = {measure: yardstick[measure] for measure in MEASURES}
    fd = names["fd"]
    walking = [name for name in params.couplings if name not in params.one_step]
    learned = "a classifier" if features["task"] == "class" else "a classifier of quarter turns"
    source = "Inception" if params.evaluate.inception else learned
    summary = {
        "dataset": read_json(root / "artifacts" / "data" / "test" / "manifest.json")["dataset"],
        "metric": fd,
        "names": names,
        "features": f"{reference['width']} of {source}, penultimate layer",
        "samples": yardstick["samples"],
        "test_images": yardstick["test"],
        "train_images": yardstick["train"],
        "seeds": list(params.seeds),
        "curvature": {name: [run["curvature"] for run in measured[name]] for name in walking},
        "teacher": _teacher(root, params, fd),
        "coupling": _coupling(root, params),
        "seconds": {name: record.get("seconds", 0.0) for name, record in _records(root, params).items()},
        "yardstick": dict(yardstick),
        "settings": params.evaluate.model_dump(include={"grid", "guidance", "curvature_steps"}),
        "floor": reference["floor"],
        "test_accuracy": features["accuracy"],
    }
    for key, metric in {**names, "accuracy": "accuracy"}.items():
        summary[key] = {name: _by_nfe(runs, metric) for name, runs in measured.items()}
    if 5 in params.evaluate.heun:
        summary["fd_heun_5"] = {name: [run[fd]["heun-5"] for run in measured[name]] for name in walking}
    summary["mean"] = {
        "fd": {name: {n: fmean(v) for n, v in by_nfe.items()} for name, by_nfe in summary["fd"].items()},
        "curvature": {name: fmean(values) for name, values in summary["curvature"].items()},
    }
    summary["cost"] = _cost(root, params, summary, measured)
    return summary


def load_samples(root: Path, params: Params) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Reads what was kept of the first seed's students.

    Returns:
        Samples by coupling and setting ("euler-5"), and paths in a plane by coupling, of students that take steps.
    """
    samples, projected = {}, {}
    for name in params.couplings:
        folder = root / "artifacts" / "evaluate" / f"{name}-{params.seeds[0]}"
        tensors, _ = load_tensors(folder / "samples.safetensors")
        if "paths" in tensors:
            projected[name] = tensors.pop("paths")
        samples[name] = {key.removeprefix("samples-"): value for key, value in tensors.items()}
    return samples, projected


def load_moments(root: Path, params: Params) -> tuple[Tensor, Tensor] | None:
    """Reads mean and variance of the first seed's noise, with an image's shape; None without a teacher."""
    if TEACHER not in params.couplings:
        return None
    shape = read_json(root / "artifacts" / "data" / "test" / "manifest.json")["shape"]
    figures = read_json(root / "metrics" / "couple" / f"{TEACHER}-{params.seeds[0]}.json")
    mean, variance = (torch.tensor(figures[name]).reshape(shape) for name in ("mean", "variance"))
    return mean, variance


def _by_nfe(runs: list[dict[str, Any]], metric: str) -> dict[str, list[float]]:
    """Returns {nfe: [a value per seed]}, with Euler's value where both solvers have one."""
    values: dict[str, list[float]] = {}
    for setting in sorted(runs[0].get(metric, {})):  # "euler-5" comes before "heun-5"
        values.setdefault(setting.partition("-")[2], [run[metric][setting] for run in runs])
    return dict(sorted(values.items(), key=lambda item: int(item[0])))


def _yardstick(
    root: Path, params: Params, measured: Mapping[str, list[dict[str, Any]]], reference: dict[str, Any]
) -> Yardstick:
    """Returns what all figures were measured with.

    Raises:
        InputError: They were measured with different features, resize filters or counts.
    """
    yardsticks = {
        f"metrics/evaluate/{name}-{seed}.json": run.get("yardstick")
        for name, runs in measured.items()
        for seed, run in zip(params.seeds, runs, strict=True)
    }
    if TEACHER in params.couplings:
        yardsticks |= {
            f"metrics/evaluate-teacher/{seed}.json": _teacher_run(root, seed).get("yardstick") for seed in params.seeds
        }
    shared = shared_yardstick(yardsticks)
    # The floor has no samples.
    images = {word: value for word, value in shared.items() if word not in (*MEASURES, "samples")}
    shared_yardstick({next(iter(yardsticks)): images, "metrics/reference.json": reference.get("yardstick")})
    return shared


def _teacher_run(root: Path, seed: int) -> dict[str, Any]:
    return read_json(root / "metrics" / "evaluate-teacher" / f"{seed}.json")


def _teacher(root: Path, params: Params, fd: str) -> dict[str, float] | None:
    if TEACHER not in params.couplings:
        return None
    runs = [_teacher_run(root, seed) for seed in params.seeds]
    figures = {name: fmean(run[name] for run in runs) for name in ("bits_per_dim", "seconds_per_image")}
    return figures | {f"fd_{kind}": fmean(run[fd][kind] for run in runs) for kind in ("raw", "denoised")}


def _coupling(root: Path, params: Params) -> dict[str, Any] | None:
    if TEACHER not in params.couplings:
        return None
    runs = [read_json(root / "metrics" / "couple" / f"{TEACHER}-{seed}.json") for seed in params.seeds]
    names = [name for name in CARD if name in runs[0]]  # without classes nothing drifts between them
    figures: dict[str, Any] = {name: fmean(run[name] for run in runs) for name in names}
    figures["eigenvalues"] = [fmean(run["eigenvalues"][end] for run in runs) for end in (0, 1)]
    figures["c2st_by_class"] = {
        c: fmean(run["c2st_by_class"][c] for run in runs if c in run["c2st_by_class"]) for c in runs[0]["c2st_by_class"]
    }
    figures["gate"] = [{"passed": run["gate"]["passed"], "line": run["gate"]["line"]} for run in runs]
    return figures


def _records(root: Path, params: Params) -> dict[str, dict[str, Any]]:
    """Returns what each stage behind the summary has left, by its name in dvc.yaml."""
    items = [f"{name}-{seed}" for name in params.couplings for seed in params.seeds]
    names = ["prepare", "features", "reference"]
    if TEACHER in params.couplings:
        for stage in ("teacher", "evaluate-teacher", "couple-teacher"):
            names += [f"{stage}@{seed}" for seed in params.seeds]
    for name in params.couplings:
        if name != TEACHER:
            stage = "couple-one-step" if name in params.one_step else "couple"
            names += [f"{stage}@{name}-{seed}" for seed in params.seeds]
    names += [f"{stage}@{item}" for stage in ("student", "evaluate") for item in items]
    return {name: record_of(root, name) for name in names}


def _cost(
    root: Path, params: Params, summary: Mapping[str, Any], measured: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Returns cost by stage, and by student with its share of teacher and coupling and what it saves in sampling.

    Returns:
        "stages", a list, and "student" as `of_stages` and `of_students` have them. Of a student also
        "seconds_per_image" by NFE and, where the teacher was measured, "pays_after": the samples after which it has
        paid for its teacher, at "pays_after_nfe": the fewest NFE at which it is as good as the teacher's denoised
        samples, else its best.
    """
    rates = Rates(**params.cost.model_dump())
    stages = of_stages(_records(root, params), rates)
    kinds = {name: params.coupling[name].kind for name in params.couplings}
    students = of_students(stages, kinds, params.seeds, rates)
    for name, cost in students.items():
        runs = [run for run in measured[name] if "seconds_per_image" in run]
        cost["seconds_per_image"] = {n: fmean(v) for n, v in _by_nfe(runs, "seconds_per_image").items()} if runs else {}
        teacher, taught = summary["teacher"], kinds[name] in ("teacher", "inverse-regression")
        if teacher and taught and runs:
            nfe = enough(summary["fd"][name], teacher["fd_denoised"])
            cost["pays_after_nfe"] = int(nfe)
            cost["pays_after"] = pays_after(
                cost["before_seconds"], teacher["seconds_per_image"], cost["seconds_per_image"][nfe]
            )
    return {"stages": [{"stage": stage, **cost} for stage, cost in stages.items()], "student": students}
