"""The comparison as a pandas table, and its formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean, stdev
from textwrap import fill
from typing import Any

import pandas as pd

from nfm.comparison.picture import cost_picture
from nfm.comparison.significance import NO_SPREAD, Difference, differences
from nfm.comparison.subject import Figures, Subject
from nfm.report.tables import duration

BETTER, WORSE = "↓", "↑"  # a distance that is lower, or higher, than its baseline beyond the noise of seeds
LEGEND = (
    f"{BETTER} better, {WORSE} worse than the row's baseline beyond the noise of seeds (Welch's t-test, two-sided, the "
    "NFEs of a row corrected by Holm at 5 %); no mark: within the noise, or not to be told with one seed."
)


@dataclass(frozen=True)
class Row:
    """One coupling of one subject.

    Attributes:
        run: The subject's name.
        coupling: The coupling's.
        figures: What was measured.
        baseline: Run and coupling that it is held against; None for the first row.
        against: The difference to it, by NFE.
    """

    run: str
    coupling: str
    figures: Figures
    baseline: tuple[str, str] | None
    against: Mapping[int, Difference]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return max(map(len, self.figures.fd.values()), default=0)

    @property
    def verdict(self) -> str:
        """At which NFEs it differs from its baseline beyond the noise of seeds."""
        if self.baseline is None:
            return "baseline"
        if not self.against:
            return "no NFE in common"
        if all(found.exceeds is None for found in self.against.values()):
            return NO_SPREAD
        parts = []
        for word in ("better", "worse"):
            at = [str(nfe) for nfe, found in self.against.items() if found.verdict == word]
            parts += [f"{word} at NFE {', '.join(at)}"] if at else []
        return "; ".join(parts) or "within seed noise"


def rows_of(subjects: Sequence[Subject]) -> list[Row]:
    """Returns a row for every coupling of every subject, each beside its baseline.

    A row is held against the same coupling of the first subject; a row of the first subject, and one whose coupling
    that lacks, against the very first row.
    """
    first = subjects[0]
    lead = next(iter(first.figures))
    rows = []
    for subject in subjects:
        for coupling, figures in subject.figures.items():
            other = coupling if subject is not first and coupling in first.figures else lead
            own = subject is first and coupling == lead
            against = {} if own else differences(dict(figures.fd), dict(first.figures[other].fd))
            rows.append(Row(subject.name, coupling, figures, None if own else (first.name, other), against))
    return rows


def long_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns numbers only, a line for every row and NFE."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        cost, curvature = row.figures.cost, row.figures.curvature
        for nfe, values in row.figures.fd.items():
            found = row.against.get(nfe)
            lines.append(
                {
                    "run": row.run,
                    "coupling": row.coupling,
                    "nfe": nfe,
                    "seeds": len(values),
                    "fd": fmean(values),
                    "fd_sd": stdev(values) if len(values) > 1 else None,
                    "kappa": fmean(curvature) if curvature else None,
                    "kappa_sd": stdev(curvature) if len(curvature) > 1 else None,
                    "seconds": cost.seconds,
                    "money": cost.money,
                    "currency": cost.currency,
                    "joules": cost.joules,
                    "pays_after": cost.pays_after,
                    "baseline": None if row.baseline is None else " ".join(row.baseline),
                    "difference": None if found is None else found.value,
                    "p": None if found is None else found.p,
                    "p_holm": None if found is None else found.adjusted,
                    "verdict": "baseline" if found is None else found.verdict,
                }
            )
    return pd.DataFrame(lines)


def wide_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns the table that people read: a line a row, a column an NFE, mean ± standard deviation of seeds."""
    nfes = sorted({nfe for row in rows for nfe in row.figures.fd})
    lines = []
    for row in rows:
        cost, curvature = row.figures.cost, row.figures.curvature
        line = {"run": row.run, "coupling": row.coupling, "seeds": str(row.seeds)}
        line |= {f"NFE {nfe}": _cell(row, nfe) for nfe in nfes}
        line["κ"] = _spread(curvature, 3)
        line["time"] = "" if cost.seconds is None else duration(cost.seconds)
        line["money"] = "" if cost.money is None else f"{cost.money:.3g} {cost.currency}"
        line["pays after"] = "" if cost.pays_after is None else f"{cost.pays_after:,.0f} samples"
        line["against baseline"] = row.verdict
        lines.append(line)
    frame = pd.DataFrame(lines)
    optional = [name for name in ("κ", "time", "money", "pays after") if not any(line[name] for line in lines)]
    return frame.drop(columns=optional)


def as_text(rows: Sequence[Row], metric: str) -> str:
    """Returns the table for a terminal."""
    frame = wide_frame(rows)
    return f"{metric}, mean ± standard deviation of seeds; low is good\n\n{_aligned(frame)}\n\n{fill(LEGEND, 110)}\n"


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """Returns numbers, a line for every row and NFE."""
    frame = long_frame(rows)
    frame.insert(2, "metric", metric)
    return frame.to_csv(index=False, lineterminator="\n")


def as_markdown(rows: Sequence[Row], metric: str) -> str:
    """Returns the table as GitHub shows it."""
    frame = wide_frame(rows)
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    body = "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"{metric}, mean ± standard deviation of seeds; low is good.\n\n{body}\n\n{LEGEND}\n"


def as_html(rows: Sequence[Row], metric: str) -> str:
    """Returns a page that needs no other file, with a figure of distance against cost where that is known."""
    students = [(row.run, row.coupling, row.figures) for row in rows]
    caption = f"{escape(metric)}, mean ± standard deviation of seeds; low is good"
    table = (
        wide_frame(rows)
        .to_html(index=False, border=0)
        .replace('<table class="dataframe">', f'<table class="dataframe"><caption>{caption}</caption>', 1)
    )
    style = (
        ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem}div{overflow-x:auto}"
        "td,th{padding:.3rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid #8886}"
        "td:nth-child(-n+2),td:last-child{text-align:left}caption{text-align:left;padding:.3rem .7rem}"
        "h1{font-size:1.3rem}"
        "p,figcaption{max-width:44rem}figure{margin:1.5rem 0}img{width:100%;max-width:34rem;height:auto}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(metric)}</title><style>{style}</style></head>"
        f"<body><main><h1>Comparison by {escape(metric)}</h1>"
        f'<div tabindex="0" role="group" aria-label="comparison">{table}</div>'
        f"<p>{escape(LEGEND)}</p>{cost_picture(students, metric)}</main></body></html>\n"
    )


FORMATS: Mapping[str, Callable[[Sequence[Row], str], str]] = {
    "text": as_text,
    "csv": as_csv,
    "markdown": as_markdown,
    "html": as_html,
}


def _cell(row: Row, nfe: int) -> str:
    if nfe not in row.figures.fd:
        return ""
    found = row.against.get(nfe)
    mark = {"better": f" {BETTER}", "worse": f" {WORSE}"}.get(found.verdict if found else "", "")
    return _spread(row.figures.fd[nfe], 2) + mark


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def _aligned(frame: pd.DataFrame) -> str:
    cells = [list(frame.columns), *frame.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
