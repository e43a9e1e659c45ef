"""What a benchmark says: one row a comparison."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.timing import Ratio

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: Of the benchmark.
        size: What was measured, in words.
        over: What ours is compared with.
        ratio: How many times as fast ours is; None where the other was not at hand.
        goal: Ratio to reach, or None.
        error: Largest deviation of ours from the exact result.
        note: What the figure means where it is another than speed.
    """

    name: str
    size: str
    over: str
    ratio: Ratio | None
    goal: float | None = None
    error: float | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns the row for a file; the quoted ratio is the lower of median and best."""
        content = asdict(self)
        if self.ratio is None:
            return content | {"ratio": NOT_MEASURED}
        figures = {key: float(f"{value:.4g}") for key, value in asdict(self.ratio).items()}
        return content | {"quoted": float(f"{self.ratio.quoted:.4g}"), "ratio": figures}


def text(rows: Sequence[Row]) -> str:
    """Returns the table for a terminal."""
    lines = [("name", "size", "over", "ratio", "goal", "ours, s", "error", "")]
    for row in rows:
        ratio = NOT_MEASURED if row.ratio is None else f"{row.ratio.quoted:.2f}"
        ours = "" if row.ratio is None else f"{row.ratio.ours:.3g}"
        goal = "" if row.goal is None else f"{row.goal:g}"
        error = "" if row.error is None else f"{row.error:.1e}"
        lines.append((row.name, row.size, row.over, ratio, goal, ours, error, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
