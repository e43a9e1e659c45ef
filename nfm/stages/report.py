"""report: the summary that git keeps, its tables, the figures and the HTML page."""

from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from nfm.artifacts import load_tensors, read_json, write_json
from nfm.config import Params
from nfm.stages.run import stage_run
from nfm.tracker import record_of

TEACHER = "teacher"
BY_NFE = ("fd", "kid", "precision", "recall", "accuracy")


def report(root: Path, params: Params) -> None:
    """Writes results/summary.json, results/*.csv and report/index.html; prints the headline."""
    from nfm.report import headline, write_csvs, write_report

    sections = {"evaluate": params.evaluate}
    with stage_run("report", root, params, sections=sections) as run:
        summary = summarise(root, params)
        if not run.main:
            return
        write_json(root / "results" / "summary.json", summary)
        write_csvs(summary, root / "results")
        write_report(summary, load_samples(root, params), load_diagnostics(root, params), root / "report")
        run.tracker.artifact(root / "results" / "summary.json", "summary.json")
        run.tracker.artifact(root / "report" / "index.html", "report.html")
        print(headline(summary))


def summarise(root: Path, params: Params) -> dict[str, Any]:
    """Joins the metrics of all seeds and couplings.

    Returns:
        By name: "fd" and the like as {coupling: {nfe: [a value per seed]}}, "curvature" as {coupling: [..]},
        "teacher" and "coupling" as means over seeds, None without a teacher, "seconds" as {stage: seconds over all
        its items}. At an NFE that both solvers measure the figure is Euler's; Heun's at 5 is in "fd_heun_5".
    """
    measured = {
        name: [read_json(root / "metrics" / "evaluate" / f"{name}-{seed}.json") for seed in params.seeds]
        for name in params.couplings
    }
    features = read_json(root / "metrics" / "features.json")
    data = read_json(root / "artifacts" / "data" / "test" / "manifest.json")
    inception = params.evaluate.inception is not None
    width = "2048 of Inception" if inception else f"{features['count']} of a classifier"
    summary = {
        "dataset": data["dataset"],
        "features": f"{width}, penultimate layer",
        "samples": params.evaluate.samples,
        "test_images": data["count"],
        "seeds": list(params.seeds),
        "curvature": {name: [run["curvature"] for run in runs] for name, runs in measured.items()},
        "teacher": _teacher(root, params),
        "coupling": _coupling(root, params),
        "seconds": _seconds(root, params),
        "floor": features["floor"],
        "test_accuracy": features["accuracy"],
    }
    for metric in BY_NFE:
        summary[metric] = {name: _by_nfe(runs, metric) for name, runs in measured.items()}
    if 5 in params.evaluate.heun:
        summary["fd_heun_5"] = {name: [run["fd"]["heun-5"] for run in runs] for name, runs in measured.items()}
    return summary


def load_samples(root: Path, params: Params) -> dict[str, dict[str, Tensor]]:
    """Reads the samples and paths kept of the first seed, by coupling; "samples of teacher" too."""
    seed, folder = params.seeds[0], root / "artifacts" / "evaluate"
    kept = {name: load_tensors(folder / f"{name}-{seed}" / "samples.safetensors")[0] for name in params.couplings}
    if TEACHER in params.couplings:
        kept["samples of teacher"] = load_tensors(folder / f"samples-of-teacher-{seed}" / "samples.safetensors")[0]
    return kept


def load_diagnostics(root: Path, params: Params) -> dict[str, Any] | None:
    """Reads the first seed's figures of the teacher's noise, None without a teacher."""
    if TEACHER not in params.couplings:
        return None
    return read_json(root / "metrics" / "couple" / f"{TEACHER}-{params.seeds[0]}.json")


def _by_nfe(runs: list[dict[str, Any]], metric: str) -> dict[str, list[float]]:
    """Returns {nfe: [a value per seed]}, with Euler's value where both solvers have one."""
    values: dict[str, list[float]] = {}
    for setting in sorted(runs[0].get(metric, {})):  # "euler-5" comes before "heun-5"
        values.setdefault(setting.partition("-")[2], [run[metric][setting] for run in runs])
    return dict(sorted(values.items(), key=lambda item: int(item[0])))


def _teacher(root: Path, params: Params) -> dict[str, float] | None:
    if TEACHER not in params.couplings:
        return None
    runs = [read_json(root / "metrics" / "evaluate-teacher" / f"{seed}.json") for seed in params.seeds]
    return {name: fmean(run[name] for run in runs) for name in runs[0]}


def _coupling(root: Path, params: Params) -> dict[str, Any] | None:
    if TEACHER not in params.couplings:
        return None
    runs = [read_json(root / "metrics" / "couple" / f"{TEACHER}-{seed}.json") for seed in params.seeds]
    figures: dict[str, Any] = {name: fmean(run[name] for run in runs) for name in ("c2st", "round_trip", "sigma")}
    figures["eigenvalues"] = [fmean(run["eigenvalues"][end] for run in runs) for end in (0, 1)]
    return figures


def _seconds(root: Path, params: Params) -> dict[str, float]:
    """Returns the seconds of each kind of stage and of each coupling's students, over all seeds."""
    items = [f"{name}-{seed}" for name in params.couplings for seed in params.seeds]
    made = [item for item in items if not item.startswith(f"{TEACHER}-")]
    addresses = {
        "prepare": ["prepare"],
        "features": ["features"],
        "couple": [f"couple@{item}" for item in made],
        "student": [f"student@{item}" for item in items],
        "evaluate": [f"evaluate@{item}" for item in items],
    }
    if TEACHER in params.couplings:
        addresses["teacher"] = [f"teacher@{seed}" for seed in params.seeds]
        addresses["couple-teacher"] = [f"couple-teacher@{seed}" for seed in params.seeds]
        addresses["evaluate-teacher"] = [f"evaluate-teacher@{seed}" for seed in params.seeds]
    return {
        stage: round(sum(record_of(root, name).get("seconds", 0.0) for name in names), 2)
        for stage, names in addresses.items()
        if names
    }
