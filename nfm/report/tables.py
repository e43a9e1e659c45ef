"""Tables of a run as HTML: measures by NFE and coupling, single figures, cost."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean, stdev
from typing import Any

from nfm.figures import DARK, colours, label

Values = Mapping[str, Mapping[str, Sequence[float]]]  # coupling -> NFE -> one value a seed


def shades(couplings: Sequence[str]) -> dict[str, str]:
    """Returns the figures' colours as CSS that follows the reader's scheme."""
    return {name: f"light-dark({shade}, {DARK.get(shade, shade)})" for name, shade in colours(couplings).items()}


def spread(values: Sequence[float], digits: int) -> str:
    """Returns mean ± sample standard deviation as HTML; the mean alone for one seed."""
    mean = f"{fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f'{mean} <span class="sd">± {stdev(values):.{digits}f}</span>'


def by_nfe(groups: Mapping[str, Values], caption: str, *, digits: int = 2, best: Any = min) -> str:
    """Returns a table with a row an NFE and a column a coupling; the best mean of a row is bold.

    Arguments:
        groups: One value a seed, by solver, coupling and NFE; the solver is a heading, unless "".
        caption: The table's caption, as HTML.
        digits: Digits after the point.
        best: `min` or `max`.
    """
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    body = ""
    for heading, values in groups.items():
        if heading:
            body += f'<tr class="group"><th scope="rowgroup" colspan="{len(names) + 1}">{heading}</th></tr>'
        for row in dict.fromkeys(row for name in names for row in values.get(name, {})):
            cells = _cells([values.get(name, {}).get(row) for name in names], digits, best)
            body += f'<tr><th scope="row">{row}</th>{cells}</tr>'
    head = ["NFE" if any(groups) else "", *names]
    return table(head, body, caption, kind="measures", couplings=names)


def table(head: Sequence[str], body: str, caption: str, *, kind: str, couplings: Sequence[str] = ()) -> str:
    """Returns a captioned table in a box that scrolls by itself where it is wider than the page.

    Arguments:
        head: Headings of the columns; a coupling's is set in words and ruled in its colour.
        body: The rows, as HTML.
        caption: As HTML.
        kind: The table's class in style.css.
        couplings: Which of the headings are couplings.
    """
    colour = shades(couplings)
    cells = "".join(
        f'<th scope="col" style="--shade:{colour[name]}">{escape(label(name))}</th>'
        if name in colour
        else f'<th scope="col">{name}</th>'
        for name in head
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{_name(caption)}">'
        f'<table class="{kind}" style="--columns:{len(head) - 1}">'
        f"<caption><span>{caption}</span></caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def key(shade: str) -> str:
    """Returns the square that stands for a coupling beside its name; names themselves are in ink, to be read."""
    return f'<span class="key" style="background:{shade}"></span>'


def facts(rows: Sequence[tuple[str, str, str]], head: tuple[str, str, str], caption: str) -> str:
    """Returns a table of single figures: name, value, what to hold it against."""
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{value}</td><td class="text">{note}</td></tr>'
        for name, value, note in rows
    )
    return table(head, body, caption, kind="facts")


def cost_by_stage(seconds: Mapping[str, float]) -> str:
    """Returns bars of seconds by stage, the runs of a stage ("student@teacher-0") added up."""
    stages: dict[str, list[float]] = {}
    for name, value in seconds.items():
        stages.setdefault(name.partition("@")[0], []).append(value)
    longest = max(map(sum, stages.values()))
    body = ""
    for name, values in stages.items():
        share = f'<span class="bar" style="width:{100 * sum(values) / longest:.1f}%"></span>'
        runs = f"{len(values)} × {duration(fmean(values))}" if len(values) > 1 else ""
        body += (
            f'<tr><th scope="row">{escape(name)}</th><td>{duration(sum(values))}</td>'
            f'<td class="runs">{runs}</td><td class="bars" aria-hidden="true">{share}</td></tr>'
        )
    total = duration(sum(seconds.values()))
    caption = f"Time by stage, {total} of computing in all (stages that ran side by side count twice)."
    return table(["stage", "time", "runs", ""], body, caption, kind="cost")


def cost_by_coupling(seconds: Mapping[str, float], couplings: Sequence[str]) -> str:
    """Returns what one student costs with its coupling, mean of seeds; "" where the stages do not tell."""
    body, cost = "", training_seconds(seconds, couplings)
    if not cost:
        return ""
    for name, shade in shades(couplings).items():
        before, student = cost[name]
        cells = "".join(f"<td>{duration(value)}</td>" for value in (before, student, before + student))
        body += f'<tr><th scope="row">{key(shade)}{escape(label(name))}</th>{cells}</tr>'
    caption = "Training time of one student; before it for NFM: the teacher and its draws, for OT: the potentials."
    return table(["coupling", "before", "student", "together"], body, caption, kind="plain")


def duration(seconds: float) -> str:
    """Returns a time in the unit that reads best."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def training_seconds(seconds: Mapping[str, float], couplings: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns seconds before a student and for it, mean of seeds, by coupling; {} where stages do not tell."""
    shares = {}
    for name in couplings:
        students = [v for k, v in seconds.items() if k.rpartition("-")[0] == f"student@{name}"]
        own = (f"couple@{name}", f"couple-one-step@{name}")
        made = [v for k, v in seconds.items() if k.rpartition("-")[0] in own]
        if name == "teacher" or f"{own[1]}-" in " ".join(seconds):
            made += [v for k, v in seconds.items() if k.partition("@")[0] in ("teacher", "couple-teacher")]
        if not students:
            return {}
        shares[name] = (sum(made) / len(students), fmean(students))
    return shares


def _name(caption: str) -> str:
    """Returns the first clause of a caption, for readers who do not see the table."""
    return re.split("[,;.] ", re.sub("<[^>]*>", "", caption), maxsplit=1)[0].rstrip(".")


def _cells(row: Sequence[Sequence[float] | None], digits: int, best: Any) -> str:
    means = [f"{fmean(values):.{digits}f}" if values else None for values in row]
    winner = best((float(mean) for mean in means if mean), default=None)
    cells = ""
    for values, mean in zip(row, means, strict=True):
        if values is None or mean is None:
            cells += "<td>–</td>"
        else:
            bold = ' class="best"' if float(mean) == winner and len(row) > 1 else ""
            cells += f"<td{bold}>{spread(values, digits)}</td>"
    return cells
