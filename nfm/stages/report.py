"""report: the summary that git keeps, its tables, the figures and the HTML page."""

from pathlib import Path
from statistics import fmean
from typing import Any

from nfm.artifacts import load_tensors, read_json, write_json
from nfm.config import Params
from nfm.stages.run import record_path, stage_run

TEACHER = "teacher"


def report(root: Path, params: Params) -> None:
    """Writes results/summary.json, results/*.csv and report/index.html; prints the headline."""
    sections = {"evaluate": params.evaluate}
    with stage_run("report", root, params, sections=sections) as run:
        summary = summarise(root, params)
        ...


def summarise(root: Path, params: Params) -> dict[str, Any]:
    """Joins the metrics of all seeds and couplings; the shape is in docs/results.md."""
    measured = {
        name: [read_json(root / "metrics" / "evaluate" / f"{name}-{s}.json") for s in params.seeds]
        for name in params.couplings
    }
    features = read_json(root / "metrics" / "features.json")
    data = read_json(root / "artifacts" / "data" / "test" / "manifest.json")
    by_nfe = {
        name: {c: _by_nfe(runs, name) for c, runs in measured.items()}
        for name in ("fd", "kid", "precision", "recall", "accuracy")
    }
    return {
        "dataset": data["dataset"],
        "features": features["name"],
        "samples": params.evaluate.samples,
        "seeds": list(params.seeds),
        **by_nfe,
        "fd_heun_5": {c: [m["fd"]["heun-5"] for m in runs] for c, runs in measured.items()},
        "curvature": {c: [m["curvature"] for m in runs] for c, runs in measured.items()},
        "teacher": _teacher(root, params),
        "coupling": _coupling(root, params),
        "seconds": _seconds(root, params),
        "floor": features["floor"],
        "test_accuracy": features["accuracy"],
    }
