"""The gate: whether a coupling's card stays within its thresholds."""

from dataclasses import dataclass
from typing import Any

from nfm.coupling.card import worst_class

LONGER = "train the teacher longer, with more blocks or with a larger noise_std"
CLASSES = "train the teacher longer or wider, so that it learns every class as well as the others"
HELP = {
    "c2st": LONGER,
    "eigenvalues": "train the teacher longer or with more blocks",
    "mean_drift": CLASSES,
    "variance_drift": CLASSES,
    "round_trip": "train the teacher with a lower lr, or in fp32",
}


@dataclass(frozen=True)
class Thresholds:
    """What a card's numbers may be at most, and its smallest eigenvalue at least.

    Attributes:
        c2st: Accuracy, overall and in each class.
        eigenvalues: Of the covariance, smallest and largest.
        mean_drift: Of a class.
        variance_drift: Of a class.
        round_trip: Error of decode(encode(x)), on the scale of [-1, 1].
    """

    c2st: float
    eigenvalues: tuple[float, float]
    mean_drift: float
    variance_drift: float
    round_trip: float


@dataclass(frozen=True)
class Line:
    """A number of the card beside its threshold.

    Attributes:
        measure: Which number, a key of `HELP`.
        name: That in words.
        value: The number.
        error: What it may deviate by from sampling alone.
        limit: The threshold.
        sign: 1 for a largest value, -1 for a smallest one.
    """

    measure: str
    name: str
    value: float
    error: float
    limit: float
    sign: int = 1

    @property
    def excess(self) -> float:
        """How far the value is beyond the threshold by more than its error, relative to the threshold."""
        return (self.sign * (self.value - self.limit) - self.error) / self.limit

    def __str__(self) -> str:
        error = f" ± {self.error:.2g}" if self.error else ""
        return (
            f"{self.name} is {self.value:.3g}{error}, expected at {'most' if self.sign > 0 else 'least'} {self.limit:g}"
        )


def judge(card: dict[str, Any], thresholds: Thresholds) -> Line:
    """Returns the card's worst line; the card is outside its gate if that line's excess is positive.

    A value is outside when it is beyond its threshold by more than its error. The errors are: of an
    accuracy its standard error over held-out images; of a drift what classes that do not differ
    would show; of an eigenvalue the spread that sampling gives a covariance (Marchenko & Pastur).

    Arguments:
        card: Of a teacher's coupling.
        thresholds: To hold it against.
    """
    (low, high), (least, most) = card["eigenvalues"], thresholds.eigenvalues
    below, above = card["eigenvalues_by_chance"]
    lines = [
        Line("c2st", "c2st", card["c2st"]["value"], card["c2st"]["error"], thresholds.c2st),
        Line("eigenvalues", "the smallest eigenvalue", low, least * (1 - below), least, -1),
        Line("eigenvalues", "the largest eigenvalue", high, most * (above - 1), most),
        Line("round_trip", "round_trip", card["round_trip"], 0.0, thresholds.round_trip),
    ]
    for measure in ("c2st", "mean_drift", "variance_drift"):
        if worst := worst_class(card, measure):
            name, found = f"{measure} of class {worst[0]!r}", worst[1]
            lines.append(Line(measure, name, found.value, found.error, getattr(thresholds, measure)))
    return max(lines, key=lambda line: line.excess)
