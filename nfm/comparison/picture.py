"""Distance against cost of what is compared, as a figure in a page."""

import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean

from nfm.comparison.subject import Figures
from nfm.figures import SAMPLES, Spent, fd_against_cost, label
from nfm.report.pictures import data_uri


def cost_picture(students: Sequence[tuple[str, str, Figures]], metric: str) -> str:
    """Returns the figure as HTML; "" where of no student the cost is known.

    Arguments:
        students: Run, coupling and figures of each.
        metric: The distance's full name.
    """
    runs = list(dict.fromkeys(run for run, _, _ in students))
    spent = [
        Spent(
            f"{label(coupling)}, {run}" if len(runs) > 1 else label(coupling),
            coupling,
            {nfe: fmean(values) for nfe, values in figures.fd.items()},
            figures.cost.seconds,
            figures.cost.seconds_per_image,
            group=runs.index(run),
        )
        for run, coupling, figures in students
        if figures.cost.seconds is not None
    ]
    if not spent:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        height = 3.9 + 0.1 * max(0, len(spent) - 5)  # the legend is below the axes
        figure = fd_against_cost(spent, Path(folder) / "cost.svg", metric=metric, height=height)
        uri = data_uri(figure.path.read_bytes(), "svg+xml")
    notes = " Each run has its own kind of line." if len(runs) > 1 else ""
    if any(not one.seconds_per_image for one in spent):
        notes += " A vertical line is training alone: how long sampling took is not known."
    return (
        f'<figure><img src="{uri}" alt="{escape(figure.alt)}"><figcaption>Distance against what one student took, with '
        f"its share of teacher and coupling, and the sampling of {SAMPLES:,} images; a curve's numbers are its fewest "
        f"and its most NFE.{notes}</figcaption></figure>"
    )
