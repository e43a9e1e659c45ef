"""FD against cost, and after how many samples a student has paid for its teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfm.figures.curves import MARKERS
from nfm.figures.style import DASHES, INK, MUTED, PAPER, Figure, colours, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 50_000  # images whose sampling is part of the cost, as many as FID is usually measured on
UNITS = (("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0))
TICKS = 7  # on an axis, about
STEPS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500)


@dataclass(frozen=True)
class Spent:
    """Of one student.

    Attributes:
        name: What the figure calls it.
        coupling: Decides its colour and marker.
        fd: Mean by NFE.
        seconds: Of training, with its share of teacher and coupling.
        seconds_per_image: Of sampling, by NFE; 0 where it is not known.
        group: Students of one group have one kind of line.
    """

    name: str
    coupling: str
    fd: Mapping[int, float]
    seconds: float
    seconds_per_image: Mapping[int, float]
    group: int = 0

    @property
    def cost(self) -> dict[int, float]:
        """Seconds of training and of sampling `SAMPLES` images, by NFE."""
        return {nfe: self.seconds + SAMPLES * self.seconds_per_image.get(nfe, 0.0) for nfe in sorted(self.fd)}


@dataclass(frozen=True)
class Payback:
    """What a student of a teacher cost before it was trained, and what its samples save.

    Attributes:
        name: What the figure calls it.
        coupling: Decides its colour.
        nfe: At which it is sampled.
        before_seconds: Its share of teacher and coupling.
        seconds_per_image: Of sampling it.
        after: Samples after which it has paid for them; None for never.
    """

    name: str
    coupling: str
    nfe: int
    before_seconds: float
    seconds_per_image: float
    after: float | None


def fd_against_cost(
    students: Sequence[Spent], path: Path, *, floor: float | None = None, metric: str = "FD", height: float = 3.9
) -> Figure:
    """Draws FD against what it takes to train a student and sample it, a curve a student, a point an NFE.

    Arguments:
        students: At least one.
        path: The file to write.
        floor: FD of the training images, drawn as a line.
        metric: "FD", or "FID" on Inception's features, with its full name where there is one.
        height: Of the figure, inches.
    """
    shades = colours(list(dict.fromkeys(one.coupling for one in students)))
    with drawn(path, 5.0, height) as canvas:
        ax = canvas.add_subplot()
        for one in students:
            cost = one.cost
            ax.plot(
                list(cost.values()),
                [one.fd[nfe] for nfe in cost],
                color=shades[one.coupling],
                label=one.name,
                marker=MARKERS.get(one.coupling, "v"),
                ls=DASHES[one.group % len(DASHES)],
                lw=1.4,
                ms=4.5 if len(cost) > 1 else 7,
                mec=PAPER,
                mew=0.6,
            )
            for nfe in {min(cost), max(cost)}:
                place: Any = {"xytext": (4, 3), "textcoords": "offset points"}
                ax.annotate(str(nfe), (cost[nfe], one.fd[nfe]), color=MUTED, size=8, **place)
        if floor:
            ax.axhline(floor, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            ax.annotate(
                f"training images {floor:.2f}",
                (0, floor),
                xycoords=("axes fraction", "data"),
                xytext=(3, 3),
                textcoords="offset points",
                color=MUTED,
                size=9,
            )
        values = [value for one in students for value in one.fd.values()] + ([floor] if floor else [])
        seconds = [value for one in students for value in one.cost.values()]
        ax.set(xscale="log", yscale="log", ylim=(min(values) * 0.84, max(values) * 1.15))
        _time_axis(ax.xaxis, min(seconds) * 0.85, max(seconds) * 1.25)
        _plain_axis(ax.yaxis, min(values) * 0.84, max(values) * 1.15)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        ax.set_xlabel(f"one student's training and {SAMPLES:,} samples (points: NFE)")
        ax.set_ylabel(f"{metric} to the test images")
        if len(students) <= 5:
            ax.legend(loc="upper right")
        else:
            ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=2, fontsize=8)
    return Figure(path, _cost_alt(students, metric))


def payback(teacher_seconds: float, students: Sequence[Payback], path: Path) -> Figure:
    """Draws time against samples: of the teacher's own, and of its students' with what came before them.

    Arguments:
        teacher_seconds: Of one sample of the teacher.
        students: At least one.
        path: The file to write.
    """
    # Without a crossing: about as many samples of the teacher as take what came before its students.
    places = [one.after for one in students if one.after] or [one.before_seconds / teacher_seconds for one in students]
    low, high = max(min(places) / 30, 1.0), max(max(places), 1.0) * 30
    counts = [low * (high / low) ** (i / 100) for i in range(101)]
    shades = colours([one.coupling for one in students])
    with drawn(path, 5.0, 3.9) as canvas:
        ax = canvas.add_subplot()
        ax.plot(counts, [n * teacher_seconds for n in counts], color=INK, lw=1.4, ls="--", label="the teacher's own")
        for one in students:
            spent = [one.before_seconds + n * one.seconds_per_image for n in counts]
            ax.plot(counts, spent, color=shades[one.coupling], lw=1.6, label=f"{one.name}, NFE {one.nfe}")
            if one.after:
                at = (one.after, one.after * teacher_seconds)
                ax.plot(*at, "o", color=shades[one.coupling], ms=7, mec=PAPER, mew=0.6)
        ax.set(xscale="log", yscale="log", xlim=(low, high))
        ends = [one.before_seconds + n * one.seconds_per_image for one in students for n in (low, high)]
        ends += [low * teacher_seconds, high * teacher_seconds]
        _time_axis(ax.yaxis, min(ends) * 0.8, max(ends) * 1.5)
        _plain_axis(ax.xaxis, low, high, steps=(1,))
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        ax.set_xlabel("samples")
        ax.set_ylabel("time: teacher and draws, then sampling")
        ax.legend(loc="upper left")
    return Figure(path, _payback_alt(teacher_seconds, students))


def _time_axis(axis: Any, low: float, high: float) -> None:
    """Sets limits and ticks of a logarithmic axis of seconds, in the units that people read."""
    places = [
        (step * unit, f"{step} {name}")
        for (name, unit), (_, following) in zip(UNITS, [*UNITS[1:], ("", 1e12)], strict=True)
        for step in STEPS
        if step * unit < following and low <= step * unit <= high
    ]
    _ticks(axis, low, high, places)


def _plain_axis(axis: Any, low: float, high: float, steps: Sequence[int] = (1, 2, 3, 5)) -> None:
    heights = [step * 10.0**k for k in range(-4, 10) for step in steps if low <= step * 10.0**k <= high]
    _ticks(axis, low, high, [(h, f"{h:,.0f}" if h >= 1 else f"{h:g}") for h in heights])


def _ticks(axis: Any, low: float, high: float, places: Sequence[tuple[float, str]]) -> None:
    from matplotlib.ticker import NullLocator

    shown: list[tuple[float, str]] = []
    for place, text in places:
        if not shown or place / shown[-1][0] > (high / low) ** (1 / TICKS):
            shown.append((place, text))
    ax: Axes = axis.axes
    (ax.set_xlim if axis is ax.xaxis else ax.set_ylim)(low, high)
    axis.set_ticks([place for place, _ in shown], labels=[text for _, text in shown])
    axis.set_minor_locator(NullLocator())


def _cost_alt(students: Sequence[Spent], metric: str) -> str:
    parts = []
    for one in students:
        cost = one.cost
        ends = [f"{one.fd[n]:.2f} for {cost[n]:,.0f} s at NFE {n}" for n in dict.fromkeys((min(cost), max(cost)))]
        parts.append(f"{one.name} {' and '.join(ends)}")
    return f"{metric} against seconds of training one student and of {SAMPLES:,} samples: {'; '.join(parts)}."


def _payback_alt(teacher_seconds: float, students: Sequence[Payback]) -> str:
    parts = [
        f"{one.name} at NFE {one.nfe} "
        + ("has never paid" if one.after is None else f"has paid after {one.after:,.0f} samples")
        + f", with {one.before_seconds:,.0f} s before it and {1000 * one.seconds_per_image:.2f} ms a sample"
        for one in students
    ]
    own = f"the teacher takes {1000 * teacher_seconds:.2f} ms for one of its own"
    return f"Time against samples: {own}; {'; '.join(parts)}."
