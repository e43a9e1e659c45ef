"""One thing that is compared: a summary's figures, or those of a single evaluation, in one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nfm.errors import InputError
from nfm.metrics.yardstick import MEASURES, Yardstick, shared_yardstick

ByNFE = Mapping[int, Sequence[float]]  # one value a seed


@dataclass(frozen=True)
class Cost:
    """What one student took, mean of seeds, its share of teacher and coupling included; None where it is not known.

    Attributes:
        seconds: Of computing.
        money: By the rate table of the params, in `currency`.
        currency: Its name.
        joules: Energy, where every stage behind it could read its own.
        pays_after: Samples after which it has cost less than sampling the teacher would have.
        seconds_per_image: Of sampling it, by NFE; empty where that was not measured.
    """

    seconds: float | None = None
    money: float | None = None
    currency: str | None = None
    joules: float | None = None
    pays_after: float | None = None
    seconds_per_image: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """Of one coupling.

    Attributes:
        fd: Fréchet distance to the test images by NFE.
        curvature: One value a seed; empty where it was not measured.
        cost: Of one student.
    """

    fd: ByNFE
    curvature: Sequence[float] = ()
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Subject:
    """A run or a revision.

    Attributes:
        name: What the table calls it.
        metric: The distance's full name, such as fd_digits_1k.
        yardstick: What it was measured with.
        figures: By coupling.
    """

    name: str
    metric: str
    yardstick: Yardstick
    figures: Mapping[str, Figures]


def from_summary(name: str, summary: Any) -> Subject:
    """Reads what the stage `report` has written.

    Arguments:
        name: What the table calls it.
        summary: Content of a results/summary.json.

    Raises:
        InputError: It is no summary.
    """
    fd = summary.get("fd") if isinstance(summary, dict) else None
    if not fd or not isinstance(fd, dict) or "metric" not in summary:
        raise InputError(f"{name} is no summary: it has no fd or no metric; the stage `report` writes one")
    curvature = summary.get("curvature", {})
    figures = {
        coupling: Figures(
            {int(nfe): values for nfe, values in sorted(by_nfe.items(), key=lambda item: int(item[0]))},
            curvature.get(coupling, ()),
            cost_of(summary, coupling),
        )
        for coupling, by_nfe in fd.items()
    }
    return Subject(name, summary["metric"], _yardstick(summary), figures)


def cost_of(summary: Mapping[str, Any], coupling: str) -> Cost:
    """Returns what a summary says of one student's cost; of one written before it had a `cost`, the seconds alone."""
    found = summary.get("cost", {}).get("student", {}).get(coupling)
    if found:
        known = {key: found.get(key) for key in ("money", "currency", "joules", "pays_after")}
        per_image = {int(nfe): seconds for nfe, seconds in found.get("seconds_per_image", {}).items()}
        return Cost(found["seconds"], **known, seconds_per_image=per_image)
    from nfm.report.tables import training_seconds

    seconds = training_seconds(summary.get("seconds", {}), [coupling]).get(coupling)
    return Cost(seconds=sum(seconds) if seconds else None)


def require_one_yardstick(subjects: Sequence[Subject]) -> None:
    """Refuses to put figures of two yardsticks side by side.

    Summaries of before they held their whole yardstick are held against the others by the words that both have; the
    floor, the training images' own distance, then stands for the features.

    Raises:
        InputError: Two were measured with other features, images or counts.
    """
    known = {subject.name: dict(subject.yardstick) for subject in subjects}
    if all("features" in yardstick for yardstick in known.values()):
        known = {name: {k: v for k, v in y.items() if k != "floor"} for name, y in known.items()}
    shared = set.intersection(*(set(yardstick) for yardstick in known.values()))
    shared_yardstick({name: {k: v for k, v in y.items() if k in shared} for name, y in known.items()})


def _yardstick(summary: Mapping[str, Any]) -> Yardstick:
    floor = summary.get("floor")
    words = {
        "dataset": summary.get("dataset"),
        "fd": summary["metric"],
        "samples": summary.get("samples"),
        "test": summary.get("test_images"),
        "train": summary.get("train_images"),
        "floor": None if floor is None else f"{floor:.3g}",
        **{key: value for key, value in summary.get("names", {}).items() if key in MEASURES},
        **summary.get("yardstick", {}),
    }
    return {key: value for key, value in words.items() if value is not None}
