"""Tables for `dvc plots` and spreadsheets."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nfm.artifacts import atomic_path


def write_csvs(summary: Mapping[str, Any], folder: Path) -> None:
    """Writes fd.csv and seconds.csv.

    fd.csv has a row an NFE: the mean over seeds in a column named as the coupling, and the standard
    deviation, empty for one seed, in a column "<coupling> sd". seconds.csv has a row a stage.

    Arguments:
        summary: What results/summary.json holds.
        folder: Where to write.
    """
    fd = summary["fd"]
    nfes = sorted({int(nfe) for values in fd.values() for nfe in values})
    head = ["nfe", *fd, *[f"{name} sd" for name in fd]]
    rows = [
        [
            nfe,
            *[_or_empty(values.get(str(nfe)), fmean, 1) for values in fd.values()],
            *[_or_empty(values.get(str(nfe)), stdev, 2) for values in fd.values()],
        ]
        for nfe in nfes
    ]
    _write(folder / "fd.csv", head, rows)
    _write(folder / "seconds.csv", ["stage", "seconds"], summary["seconds"].items())


def _or_empty(values: Sequence[float] | None, statistic: Any, least: int) -> Any:
    return statistic(values) if values and len(values) >= least else ""


def _write(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
