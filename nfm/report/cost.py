"""The table of what a student cost beside how good it is."""

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from nfm.figures import label
from nfm.report.headline import metric
from nfm.report.tables import duration, key, shades, table


def cost_by_student(summary: Mapping[str, Any]) -> str:
    """Returns FD against cost: a row a coupling, what one student took with its share of teacher and coupling.

    Columns of money and energy are there where every student has them.

    Arguments:
        summary: What results/summary.json holds, with its "cost".
    """
    students = summary["cost"]["student"]
    nfes = _shown(summary["fd"])
    optional = [key for key in ("money", "joules") if all(key in cost for cost in students.values())]
    pays = any("pays_after_nfe" in cost for cost in students.values())
    head = ["coupling", "before", "student", "together", *(_HEADS[key] for key in optional)]
    head += [f"{metric(summary)} at {nfe}" for nfe in nfes] + ["pays for its teacher after"] * pays
    body = ""
    for name, shade in shades(list(students)).items():
        cost = students[name]
        cells = [duration(cost["before_seconds"]), duration(cost["seconds"] - cost["before_seconds"])]
        cells += [duration(cost["seconds"]), *(_amount(cost, key) for key in optional)]
        cells += [f"{fmean(values):.2f}" if (values := summary["fd"][name].get(nfe)) else "–" for nfe in nfes]
        cells += [_pays(cost)] * pays
        filled = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr><th scope="row">{key(shade)}{escape(label(name))}</th>{filled}</tr>'
    caption = (
        "What one student cost, mean of seeds, beside its distance at some NFE; before it for NFM: its share of the "
        "teacher and its draws, for OT: the potentials."
    )
    if pays:
        caption += (
            " A student has paid for its teacher once the time that its samples have saved over the teacher's is as "
            "long as what came before it took; at the fewest NFE where it is as good as the teacher, else at its best."
        )
    return table(head, body, caption, kind="plain")


_HEADS = {"money": "money", "joules": "energy"}


def _shown(fd: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Returns up to three NFEs: the fewest, the middle and the most."""
    nfes = sorted({nfe for values in fd.values() for nfe in values}, key=int)
    return list(dict.fromkeys([nfes[0], nfes[len(nfes) // 2], nfes[-1]])) if nfes else []


def _amount(cost: Mapping[str, Any], key: str) -> str:
    return f"{cost[key]:.2g} {escape(cost['currency'])}" if key == "money" else f"{cost[key] / 1000:.1f} kJ"


def _pays(cost: Mapping[str, Any]) -> str:
    if "pays_after_nfe" not in cost:
        return "–"
    samples = "never" if cost["pays_after"] is None else f"{cost['pays_after']:,.0f} samples"
    return f"{samples} (NFE {cost['pays_after_nfe']})"
