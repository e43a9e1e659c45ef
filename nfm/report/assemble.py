"""The report's folder: figures, then the page that holds them."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from nfm.figures import (
    Figure,
    Payback,
    Spent,
    coupling_diagnostics,
    fd_against_cost,
    fd_curves,
    hero,
    label,
    paths,
    payback,
)
from nfm.report.headline import full_metric
from nfm.report.html import render
from nfm.report.pictures import samples_by_nfe


def write_report(
    summary: Mapping[str, Any],
    folder: Path,
    *,
    samples: Mapping[str, Mapping[str, Tensor]],
    projected: Mapping[str, Tensor],
    moments: tuple[Tensor, Tensor] | None,
    records: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Figure]:
    """Writes index.html, which needs no other file, and the figures by themselves.

    Arguments:
        summary: What results/summary.json holds. An optional entry "settings" may name "grid",
            "guidance" and "curvature_steps"; by default "t2", 1 and 128.
        folder: Where to write.
        samples: Pixels as uint8, with shape (K, C, H, W), by coupling and by solver and NFE
            ("euler-5"), of one seed, from the same noise and labels.
        projected: Paths in a plane by coupling, with shape (S + 1, B, 2).
        moments: Mean and variance of the teacher's noise, both with shape (C, H, W), or None.
        records: What the stages have left, by their name in dvc.yaml.

    Returns:
        The figures by name: "fd", "fd.png", and of "hero", "paths", "noise", "cost" and "payback" those that were
        given data.
    """
    by_nfe = {name: samples_by_nfe(settings) for name, settings in samples.items() if settings}
    heun = _heun(summary, samples)
    floor, teacher, name = summary.get("floor"), summary.get("teacher"), full_metric(summary)
    lines: dict[str, Any] = {"floor": floor, "heun": heun, "metric": name}
    lines["teacher"] = teacher["fd_denoised"] if teacher else None
    figures = {
        "fd": fd_curves(summary["fd"], folder / "fd.svg", **lines),
        "fd.png": fd_curves(summary["fd"], folder / "fd.png", **lines),
    }
    if by_nfe:
        figures["hero"] = hero(by_nfe, summary["fd"], folder / "hero.png", floor=floor, metric=name)
    if projected:
        figures["paths"] = paths(projected, folder / "paths.svg")
    if moments is not None:
        figures["noise"] = coupling_diagnostics(*moments, folder / "noise.svg")
    if spent := _spent(summary):
        figures["cost"] = fd_against_cost(spent, folder / "cost.svg", floor=floor, metric=name)
    if teacher and (paid := _paid(summary)):
        figures["payback"] = payback(teacher["seconds_per_image"], paid, folder / "payback.svg")
    render(summary, folder / "index.html", samples=by_nfe, figures=figures, heun=heun, records=records)
    return figures


def _spent(summary: Mapping[str, Any]) -> list[Spent]:
    """Returns what the students cost, of those couplings whose stages tell."""
    return [
        Spent(
            label(name),
            name,
            {int(nfe): fmean(values) for nfe, values in summary["fd"][name].items()},
            cost["seconds"],
            {int(nfe): seconds for nfe, seconds in cost["seconds_per_image"].items()},
        )
        for name, cost in _students(summary).items()
    ]


def _paid(summary: Mapping[str, Any]) -> list[Payback]:
    """Returns what came before the students of a teacher, where it was measured beside them."""
    return [
        Payback(
            label(name),
            name,
            cost["pays_after_nfe"],
            cost["before_seconds"],
            cost["seconds_per_image"][str(cost["pays_after_nfe"])],
            cost["pays_after"],
        )
        for name, cost in _students(summary).items()
        if "pays_after_nfe" in cost
    ]


def _students(summary: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return summary.get("cost", {}).get("student", {})


def _heun(summary: Mapping[str, Any], samples: Mapping[str, Mapping[str, Tensor]]) -> list[int]:
    """Returns the NFEs that only Heun sampled, by the samples' names; without samples, those above 5."""
    nfes = {int(nfe) for values in summary["fd"].values() for nfe in values}
    names = {name for settings in samples.values() for name in settings}
    return sorted(n for n in nfes if (f"euler-{n}" not in names if names else n > 5))
