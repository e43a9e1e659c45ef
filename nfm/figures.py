"""Figures of a run: samples by coupling and NFE, FD against NFE, paths, the teacher's noise.

The ending of a path chooses the format. SVG follows the reader's light or dark scheme and is drawn for the width of a
phone; the same input gives the same bytes. Every function returns the figure with an alternative text that states what
it shows, numbers included.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nfm.artifacts import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LABELS = {
    "independent": "FM",
    "minibatch-ot": "minibatch OT",
    "semidiscrete-ot": "semidiscrete OT",
    "teacher": "NFM",
    "inverse-regression": "inverse regression",
}
# The baseline is grey, optimal transport blue, the teacher's coupling the one warm colour. Lightness differs too.
COLOURS = {
    "independent": "#737373",
    "minibatch-ot": "#2b8cc9",
    "semidiscrete-ot": "#00569b",
    "teacher": "#d55e00",
    "inverse-regression": "#7a003c",
}
SPARE = ("#009e73", "#b8559b", "#a07800", "#5b4bb0")
CROWD = 6  # curves whose names fit inside their axes
DASHES = ("-", "--", ":")  # tell unknown names apart that share a colour
MARKERS = {"independent": "o", "minibatch-ot": "^", "semidiscrete-ot": "s", "teacher": "D", "inverse-regression": "X"}

INK, MUTED, RULE, PAPER = "#1f2328", "#6a7078", "#d9dce0", "#fffffe"
DARK = {  # what a colour turns into on a dark screen
    **{INK: "#e4e2dd", MUTED: "#9aa0a8", RULE: "#3a3f46", PAPER: "#15171a"},
    **{"#737373": "#9c9c9c", "#2b8cc9": "#79c3ee", "#00569b": "#3b86cf", "#d55e00": "#f07d2e", "#7a003c": "#dc7ba6"},
}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "nfm",
}

Values = Mapping[str, Mapping[str, Sequence[float]]]  # coupling -> NFE -> one value a seed


@dataclass(frozen=True)
class Figure:
    """A figure's file and what a reader who does not see it should know."""

    path: Path
    alt: str


def label(coupling: str) -> str:
    """Returns a coupling's name as figures and tables print it."""
    return LABELS.get(coupling, coupling)


def colours(couplings: Sequence[str]) -> dict[str, str]:
    """Returns one colour a coupling, the same in every figure; unknown names share four spare ones in turn."""
    unknown = [name for name in couplings if name not in COLOURS]
    spare = {name: SPARE[i % len(SPARE)] for i, name in enumerate(unknown)}
    return {name: COLOURS.get(name) or spare[name] for name in couplings}


def _dashes(names: Sequence[str]) -> dict[str, str]:
    unknown = [name for name in names if name not in COLOURS]
    return {name: DASHES[i // len(SPARE) % len(DASHES)] for i, name in enumerate(unknown)}


def tile(images: Tensor, columns: int, *, size: int = 32, gap: int = 2) -> np.ndarray:
    """Lays images side by side, each pixel enlarged to a whole number of pixels, on a clear ground.

    Arguments:
        images: Pixels as uint8, with shape (K, C, H, W), C = 1 or 3.
        columns: Images in a row.
        size: Height in pixels that an image is enlarged to at least.
        gap: Pixels between images.

    Returns:
        Red, green, blue and opacity as uint8, with shape (height, width, 4).
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}, expected uint8 (K, C, H, W)")
    zoom = ceil(size / images.shape[2])
    pixels = images.expand(-1, 3, -1, -1).movedim(1, 3).numpy().repeat(zoom, 1).repeat(zoom, 2)
    (height, width), rows = pixels.shape[1:3], ceil(len(pixels) / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for i, image in enumerate(pixels):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width, :3] = image
        sheet[y : y + height, x : x + width, 3] = 255
    return sheet


def several_steps(samples: Mapping[str, Mapping[int, Any]]) -> dict[str, Mapping[int, Any]]:
    """Returns the couplings whose students take several steps; all if none does."""
    return {name: by_nfe for name, by_nfe in samples.items() if len(by_nfe) > 1} or dict(samples)


def spread_over(images: Tensor, count: int) -> Tensor:
    """Returns `count` of the images at even distances, first and last among them; all if there are no more."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()]


def sample_grid(images: Tensor, row_names: Sequence[str], column_names: Sequence[str], path: Path) -> Figure:
    """Draws images in rows and columns.

    Arguments:
        images: Pixels as uint8, with shape (R, K, C, H, W).
        row_names: R names, or none.
        column_names: K names, or none.
        path: The file to write.
    """
    cells = [[tile(image[None], 1) for image in row] for row in images]
    size = 0.5 if len(cells[0]) > 6 else 0.75
    with _drawn(path, len(cells[0]) * size + 0.9, len(cells) * size + 0.3) as canvas:
        _draw_cells(canvas.add_subplot(), cells, row_names, column_names)
    rows = f"rows {', '.join(row_names)}" if row_names else f"{len(cells)} rows"
    columns = f"columns {', '.join(column_names)}" if column_names else f"{len(cells[0])} columns"
    return Figure(path, f"Grid of samples: {rows}; {columns}.")


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
    with _drawn(path, 5.0, 3.9) as canvas:
        _draw_curves(canvas.add_subplot(), fd, floor, teacher, heun, metric, images)
    return Figure(path, _curves_alt(fd, floor, teacher, metric))


def paths(projected: Mapping[str, Tensor], path: Path) -> Figure:
    """Draws sampled paths in one plane, a panel a coupling.

    Arguments:
        projected: Points by coupling, with shape (S + 1, B, 2), from noise to data.
        path: The file to write.
    """
    columns = min(2, len(projected))
    rows = ceil(len(projected) / columns)
    shades = colours(list(projected))
    with _drawn(path, 5.0, 2.45 * rows if columns > 1 else 4) as canvas:
        axes = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for ax, (name, points) in zip(axes, projected.items(), strict=False):
            _draw_paths(ax, np.asarray(points), shades[name])
            ax.set_title(label(name), loc="left", color=shades[name], fontweight="bold")
        for ax in list(axes)[len(projected) :]:
            ax.set_axis_off()
    bends = "; ".join(f"{label(k)} {100 * _detour(np.asarray(v)):.1f} %" for k, v in projected.items())
    return Figure(
        path,
        f"Paths from noise (rings) to data (dots), projected to a plane. Median length above the chord's: {bends}.",
    )


def coupling_diagnostics(mean: Tensor, variance: Tensor, path: Path) -> Figure:
    """Draws mean and variance of the teacher's noise per dimension, as images and as histograms.

    Arguments:
        mean: Mean of z, with shape (C, H, W); 0 is perfect.
        variance: Variance of z, same shape; 1 is perfect.
        path: The file to write.
    """
    with _drawn(path, 5.0, 4.1) as canvas:
        axes = canvas.subplots(2, 2, height_ratios=[1.7, 1])
        for column, (name, values, ideal) in enumerate([("mean", mean, 0.0), ("variance", variance, 1.0)]):
            _draw_map(axes[0, column], values, ideal)
            axes[0, column].set_title(f"{name} of z, per pixel", loc="left")
            _draw_histogram(axes[1, column], values, ideal)
            axes[1, column].set_xlabel(f"{name} (N(0, I): {ideal:g})")
        axes[1, 0].set_ylabel("dimensions")
    return Figure(
        path,
        f"The teacher's noise over {mean.numel()} dimensions: mean from {mean.min():.2f} to {mean.max():.2f}, "
        f"variance from {variance.min():.2f} to {variance.max():.2f}; a standard normal has 0 and 1.",
    )


def draw_card(card: Mapping[str, Any], path: Path) -> Figure:
    """Draws a teacher's card: C2ST and drifts by class, with their errors, and the moments per dimension.

    Arguments:
        card: What card.json holds.
        path: The file to write.
    """
    (low, high), score, looked = card["eigenvalues"], card["c2st"], card["looked_at"]
    text = (
        f"C2ST {score['value']:.3f} ± {score['error']:.3f}, eigenvalues {low:.2f} to {high:.2f}, "
        f"σ {card['sigma']:.3f}, round trip {card['round_trip']:.1e}; "
        f"{looked['draws']} draws of {looked['images']} images"
    )
    with _drawn(path, 9.0, 4.6) as canvas:
        axes = canvas.subplot_mosaic([["c2st", "mean_drift", "variance_drift"], ["mean", "variance", "eigenvalues"]])
        for name, title in (("c2st", "C2ST"), ("mean_drift", "drift of mean"), ("variance_drift", "drift of variance")):
            _draw_by_class(axes[name], {c: entry[name] for c, entry in card["classes"].items()}, name == "c2st")
            axes[name].set_title(f"{title}, by class", loc="left")
        for name, ideal in (("mean", 0.0), ("variance", 1.0)):
            _draw_histogram(axes[name], torch.tensor(card[name]), ideal)
            axes[name].set_xlabel(f"{name} of a dimension (N(0, I): {ideal:g})")
        for height, ends in enumerate((card["eigenvalues_by_chance"], card["eigenvalues"])):
            axes["eigenvalues"].plot(
                ends, [height] * 2, color=(INK, COLOURS["teacher"])[height], marker="|", lw=2, ms=9
            )
        axes["eigenvalues"].set(ylim=(-0.6, 1.6), xlabel="eigenvalues of the covariance (N(0, I): 1)")
        axes["eigenvalues"].set_yticks([0, 1], ["by\nchance", "z"])
        canvas.suptitle(text, x=0.01, ha="left", size=10)
    return Figure(path, f"The teacher's coupling: {text}.")


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
    with _drawn(path, 11.5, max(3.2, 0.5 + 0.71 * len(cells)), layout=None) as canvas:
        left, right = canvas.add_axes((0.08, 0.02, 0.555, 0.9)), canvas.add_axes((0.705, 0.15, 0.29, 0.77))
        _draw_cells(left, cells, [label(name) for name in samples], [f"NFE {nfe}" for nfe in shown])
        for text, shade in zip(left.get_yticklabels(), colours(list(samples)).values(), strict=True):
            text.set(color=shade, fontweight="bold")
        _draw_curves(right, fd, floor, None, (), metric)
    names = ", ".join(label(name) for name in samples)
    return Figure(
        path,
        f"Samples of {names} (rows) with {', '.join(map(str, shown))} network evaluations (columns), from the same "
        f"noise, with the same labels if any. {_curves_alt(fd, floor, None, metric)}",
    )


@contextmanager
def _drawn(path: Path, width: float, height: float, layout: Any = "constrained") -> Iterator["Canvas"]:
    """Gives a canvas of that size, inches, which is written when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas((width, height), layout=layout)
        yield canvas
        tight: Any = {"bbox_inches": "tight", "pad_inches": 0.06}  # labels beside square images would be cut
        with atomic_path(path) as temporary:
            if path.suffix == ".svg":
                canvas.savefig(temporary, format="svg", transparent=True, metadata={"Date": None}, **tight)
                temporary.write_text(_with_dark_scheme(temporary.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                canvas.savefig(temporary, format=path.suffix[1:], dpi=200, **tight)


def _with_dark_scheme(svg: str) -> str:
    """Adds what the colours turn into on a dark screen."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    head = '<style type="text/css">'
    assert head in svg
    return svg.replace(head, f"{head}@media screen and (prefers-color-scheme: dark){{{rules}}}\n", 1)


def _draw_cells(ax: "Axes", cells: list[list[np.ndarray]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Puts tiles on a lattice of unit width, with names as tick labels."""
    margin, aspect = 0.04, cells[0][0].shape[0] / cells[0][0].shape[1]
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            extent = (c + margin, c + 1 - margin, (r + 1) * aspect - margin, r * aspect + margin)
            ax.imshow(cell, extent=extent, interpolation="nearest")
    ax.set(xlim=(0, len(cells[0])), ylim=(len(cells) * aspect, 0), aspect="equal")
    ax.set_xticks([c + 0.5 for c in range(len(columns))], columns)
    ax.set_yticks([(r + 0.5) * aspect for r in range(len(rows))], [name.replace(" ", "\n") for name in rows])
    ax.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False, left=False)
    ax.spines[:].set_visible(False)


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

    shades, dashes, low, high = colours(list(fd)), _dashes(list(fd)), [floor] if floor else [], []
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


def _draw_paths(ax: "Axes", points: np.ndarray, shade: str) -> None:
    ax.plot(points[:, :, 0], points[:, :, 1], color=shade, lw=0.9, alpha=0.75)
    ax.plot(points[0, :, 0], points[0, :, 1], "o", ms=3.2, mfc="none", mec=MUTED, mew=0.7)
    ax.plot(points[-1, :, 0], points[-1, :, 1], "o", ms=3.2, color=shade, mew=0)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _draw_map(ax: "Axes", values: Tensor, ideal: float) -> None:
    """Draws values per pixel, channels side by side, on a scale centred on the ideal."""
    reach = max(0.1, (values - ideal).abs().max().item())
    image = ax.imshow(
        torch.cat(list(values), dim=1).numpy(),
        cmap="RdBu_r",
        vmin=ideal - reach,
        vmax=ideal + reach,
        interpolation="nearest",
    )
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.75, aspect=12)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _draw_histogram(ax: "Axes", values: Tensor, ideal: float) -> None:
    ax.hist(values.flatten().numpy(), bins=16, color=COLOURS["teacher"])
    ax.axvline(ideal, color=INK, lw=1.2, ls=(0, (4, 3)))
    ax.locator_params(axis="y", integer=True, nbins=4)


def _draw_by_class(ax: "Axes", found: Mapping[str, Mapping[str, float] | None], score: bool) -> None:
    """Draws accuracies with error bars about 0.5, or drifts as bars with what sampling alone gives as lines."""
    shown = {name: entry for name, entry in found.items() if entry}
    if not shown:
        ax.text(0.5, 0.5, "too few images of a class,\nor no classes", ha="center", va="center", color=MUTED)
        ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
        return
    x, values = range(len(shown)), [entry["value"] for entry in shown.values()]
    errors = [entry["error"] for entry in shown.values()]
    if score:
        ax.errorbar(x, values, errors, fmt="o", ms=4, color=COLOURS["teacher"], ecolor=MUTED, elinewidth=0.9)
        ax.axhline(0.5, color=INK, lw=1.2, ls=(0, (4, 3)))
    else:
        ax.bar(x, values, width=0.7, color=COLOURS["teacher"])
        ax.hlines(errors, [i - 0.45 for i in x], [i + 0.45 for i in x], color=INK, lw=1.2, label="by chance")
        ax.set_ylim(0, 1.3 * max(*values, *errors))
        ax.legend(loc="upper right")
    few = len(shown) <= 12
    ax.set_xticks(list(x) if few else [], [name[:8] for name in shown] if few else [])


def _means(values: Mapping[str, Sequence[float]]) -> list[float]:
    return [statistics.fmean(v) for v in values.values()]


def _detour(points: np.ndarray) -> float:
    """Returns the median of length over chord, less 1, of paths with shape (S + 1, B, 2); 0 for a point."""
    length = np.linalg.norm(np.diff(points, axis=0), axis=2).sum(0)
    chord = np.linalg.norm(points[-1] - points[0], axis=1)
    return float(np.median(np.divide(length, chord, out=np.ones_like(length), where=chord > 0)) - 1)


def _curves_alt(fd: Values, floor: float | None, teacher: float | None, metric: str) -> str:
    parts = []
    for name, values in fd.items():
        nfe, mean = list(values), _means(values)
        parts.append(f"{label(name)} from {mean[0]:.2f} at NFE {nfe[0]} to {mean[-1]:.2f} at NFE {nfe[-1]}")
    lines = [f"the teacher's own samples {teacher:.2f}"] if teacher else []
    lines += [f"the training images {floor:.2f}"] if floor else []
    return f"{metric} against NFE: {'; '.join(parts + lines)}."
