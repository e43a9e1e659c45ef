"""Where a report's numbers are from: the stages behind it by hash and by MLflow's run."""

from collections.abc import Mapping
from html import escape
from typing import Any

from nfm.report.tables import duration, table

RUN = ' class="run"'  # by which `nfm.report.complete` finds the runs that can be linked


def stages_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of what each stage has left, folded away; "" where no stage left a record.

    Arguments:
        records: By the stage's name in dvc.yaml, see `nfm.tracker.record_of`.
    """
    body = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td>{_code(record.get("key"))}</td>'
        f"<td>{_code(record.get('run_id'), RUN)}</td><td>{escape(str(record.get('device', '–')))}</td>"
        f"<td>{duration(record['seconds']) if 'seconds' in record else '–'}</td></tr>"
        for stage, record in records.items()
        if record
    )
    if not body:
        return ""
    caption = (
        "The stages behind this page: hash of all that decides a stage's outputs, and the MLflow run that made them."
    )
    inside = table(["stage", "hash", "MLflow run", "device", "time"], body, caption, kind="plain hashes")
    return (
        f"<details><summary>All {len(records)} stages, by hash and MLflow run</summary>{inside}</details>"
        '<p class="note"><code>python -m nfm trace STAGE</code> prints a stage\'s whole chain, and <code>python -m nfm '
        "restore RUN</code> brings back its params and artifacts.</p>"
    )


def _code(text: Any, kind: str = "") -> str:
    return f"<code{kind}>{escape(str(text))}</code>" if text else "–"
