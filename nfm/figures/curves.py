"""FD against NFE, alone and beside samples."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from nfm.figures.samples import draw_cells, several_steps, spread_over, tile
from nfm.figures.style import MUTED, PAPER, Figure, colours, dashes_of, drawn, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CROWD = 6  # curves whose names fit inside their axes
MARKERS = {"independent": "o", "minibatch-ot": "^", "semidiscrete-ot": "s", "teacher": "D", "inverse-regression": "X"}
Values = Mapping[str, Mapping[str, Sequence[float]]]  # coupling -> NFE -> one value a seed


def fd_curves(
    fd: Values,
    path: Path,
    *,
    floor: float | None = None,
    teacher: float | None = None,
    heun: Sequence[int] = (),
    metric: str = "FD",
    images: str = "test",
) -> Figure:
    """Draws FD against NFE on logarithmic axes: means of seeds, shaded by one standard deviation.

    Arguments:
        fd: One value a seed, by coupling and NFE.
        path: The file to write.
        floor: FD of the training images, drawn as a line.
        teacher: FD of the teacher's own denoised samples, drawn as a line.
        heun: NFEs that Heun sampled; Euler sampled the others.
        metric: "FD", or "FID" on Inception's features, with its full name where there is one.
        images: What it was measured against: "test" or "validation".
    """
    with drawn(path, 5.0, 3.9) as canvas:
        _draw_curves(canvas.add_subplot(), fd, floor, teacher, heun, metric, images)
    return Figure(path, _curves_alt(fd, floor, teacher, metric))


def hero(
    samples: Mapping[str, Mapping[int, Tensor]],
    fd: Values,
    path: Path,
    *,
    floor: float | None = None,
    metric: str = "FD",
    columns: Sequence[int] = (1, 2, 3, 5, 7, 31),
) -> Figure:
    """Draws one wide picture for a README: samples by coupling and NFE beside the FD curves.

    Arguments:
        samples: Pixels by coupling and NFE, uint8 with shape (K, C, H, W), from the same noise and labels.
        fd: One value a seed, by coupling and NFE.
        path: The file to write.
        floor: FD of the training images.
        metric: "FD", or "FID" on Inception's features, with its full name where there is one.
        columns: NFEs to show; those that a coupling lacks are left out.
    """
    samples = several_steps(samples)
    shown = [nfe for nfe in columns if all(nfe in images for images in samples.values())]
    cells = [[tile(spread_over(images[nfe], 6), 3) for nfe in shown] for images in samples.values()]
    with drawn(path, 11.5, max(3.2, 0.5 + 0.71 * len(cells)), layout=None) as canvas:
        left, right = canvas.add_axes((0.08, 0.02, 0.555, 0.9)), canvas.add_axes((0.705, 0.15, 0.29, 0.77))
        draw_cells(left, cells, [label(name) for name in samples], [f"NFE {nfe}" for nfe in shown])
        for text, shade in zip(left.get_yticklabels(), colours(list(samples)).values(), strict=True):
            text.set(color=shade, fontweight="bold")
        _draw_curves(right, fd, floor, None, (), metric)
    names = ", ".join(label(name) for name in samples)
    return Figure(
        path,
        f"Samples of {names} (rows) with {', '.join(map(str, shown))} network evaluations (columns), from the same "
        f"noise, with the same labels if any. {_curves_alt(fd, floor, None, metric)}",
    )


def _draw_curves(
    ax: "Axes",
    fd: Values,
    floor: float | None,
    teacher: float | None,
    heun: Sequence[int],
    metric: str,
    images: str = "test",
) -> None:
    from matplotlib.ticker import NullLocator

    shades, dashes, low, high = colours(list(fd)), dashes_of(list(fd)), [floor] if floor else [], []
    # The legend lists curves from the top down.
    for name in sorted(fd, key=lambda name: -_means(fd[name])[0]):
        nfe, mean = [int(n) for n in fd[name]], np.array(_means(fd[name]))
        deviation = np.array([statistics.stdev(v) if len(v) > 1 else 0.0 for v in fd[name].values()])
        ax.fill_between(
            nfe, np.maximum(mean - deviation, mean / 2), mean + deviation, color=shades[name], alpha=0.16, lw=0
        )
        ax.plot(
            nfe,
            mean,
            color=shades[name],
            label=label(name),
            marker=MARKERS.get(name, "v"),
            ls=dashes.get(name, "-"),
            lw=1.6,
            ms=4.5 if len(nfe) > 1 else 7,  # a point by itself has no line that leads to it
            mec=PAPER,
            mew=0.6,
        )
        low, high = [*low, *mean], [*high, *mean, *(mean + deviation)]
    ax.set(xscale="log", yscale="log", ylim=(min(low) * 0.84, max(high) * 1.12))
    ticks = sorted({int(n) for values in fd.values() for n in values})
    for value, text in ((teacher, "teacher's own samples"), (floor, "training images")):
        if value:
            ax.axhline(value, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            place: Any = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
            ax.annotate(f"{text} {value:.2f}", (ticks[-1], value), color=MUTED, size=9, **place)
    ax.set_xticks(ticks, [str(n) for n in ticks])
    heights = [
        a * 10.0**k for k in range(-3, 5) for a in (1, 2, 3, 5) if min(low) * 0.84 <= a * 10.0**k <= max(high) * 1.12
    ]
    ax.set_yticks(heights, [f"{h:g}" for h in heights])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    solvers = f", Heun at {', '.join(map(str, heun))}" if heun else ""
    ax.set_xlabel(f"network evaluations (NFE){solvers}")
    ax.set_ylabel(f"{metric} to the {images} images")
    if len(fd) <= CROWD:
        ax.legend(loc="upper right")
    else:
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=2, fontsize=8.5)


def _means(values: Mapping[str, Sequence[float]]) -> list[float]:
    return [statistics.fmean(v) for v in values.values()]


def _curves_alt(fd: Values, floor: float | None, teacher: float | None, metric: str) -> str:
    parts = []
    for name, values in fd.items():
        nfe, mean = list(values), _means(values)
        parts.append(f"{label(name)} from {mean[0]:.2f} at NFE {nfe[0]} to {mean[-1]:.2f} at NFE {nfe[-1]}")
    lines = [f"the teacher's own samples {teacher:.2f}"] if teacher else []
    lines += [f"the training images {floor:.2f}"] if floor else []
    return f"{metric} against NFE: {'; '.join(parts + lines)}."
