"""A coupling: the paths of its students, its noise, its card."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nfm.figures.style import COLOURS, INK, MUTED, Figure, colours, drawn, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def paths(projected: Mapping[str, Tensor], path: Path) -> Figure:
    """Draws sampled paths in one plane, a panel a coupling.

    Arguments:
        projected: Points by coupling, with shape (S + 1, B, 2), from noise to data.
        path: The file to write.
    """
    columns = min(2, len(projected))
    rows = ceil(len(projected) / columns)
    shades = colours(list(projected))
    with drawn(path, 5.0, 2.45 * rows if columns > 1 else 4) as canvas:
        axes = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for ax, (name, points) in zip(axes, projected.items(), strict=False):
            _draw_paths(ax, np.asarray(points), shades[name])
            ax.set_title(label(name), loc="left", fontweight="bold")
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
    with drawn(path, 5.0, 4.1) as canvas:
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
    with drawn(path, 9.0, 4.6) as canvas:
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


def _detour(points: np.ndarray) -> float:
    """Returns the median of length over chord, less 1, of paths with shape (S + 1, B, 2); 0 for a point."""
    length = np.linalg.norm(np.diff(points, axis=0), axis=2).sum(0)
    chord = np.linalg.norm(points[-1] - points[0], axis=1)
    return float(np.median(np.divide(length, chord, out=np.ones_like(length), where=chord > 0)) - 1)
