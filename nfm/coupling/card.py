"""The card of a teacher's coupling: what its noise is like, overall and class by class, computed from its draws."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from nfm.coupling.diagnostics import HeldOut, Measured, c2st, drift, noise_statistics, spectrum_spread

ROWS = 10_000  # of noise, at most, that are looked at
C2ST_IMAGES = 100  # of a class, at least, for an accuracy of its own, half of them held out
DRIFT_IMAGES = 30  # of a class, at least, for a drift


def looked_at(count: int, draws: int) -> tuple[int, int]:
    """Returns how many images a card looks at, from the first, and how many draws of each.

    As many images as the rows allow come before many draws, since images are the independent units.

    Arguments:
        count: Images, in no order.
        draws: Draws of each.
    """
    each = min(draws, max(1, ROWS // count))
    return min(count, ROWS // each), each


def measure(noise: Tensor, label: Tensor | None, classes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Compares noise with N(0, I).

    Arguments:
        noise: z of I images, K draws each, with shape (I, K, *event).
        label: Their labels, with shape (I,); None without labels, or where z does not depend on them.
        classes: Names in the order of the labels.
        seed: Seed of the two-sample test.

    Returns:
        "looked_at" (images, draws), "c2st" (value, error, images held out), "eigenvalues" (smallest,
        largest), "eigenvalues_by_chance" (what N(0, I) would show), the lists "mean" and "variance"
        over dimensions, and "classes": by name, the class's images and its "c2st", "mean_drift" and
        "variance_drift", each with "value" and "error", None where it has too few images.
    """
    z = noise.flatten(2)
    moments, held = noise_statistics(z.flatten(0, 1)), c2st(z, label, seed=seed)
    return {
        "looked_at": {"images": len(z), "draws": z.shape[1]},
        "c2st": {**asdict(held.mean()), "images": len(held.image)},
        "eigenvalues": list(moments.eigenvalues),
        "eigenvalues_by_chance": list(spectrum_spread(z.shape[0] * z.shape[1], z.shape[2])),
        "mean": moments.mean.tolist(),
        "variance": moments.variance.tolist(),
        "classes": {} if label is None else _by_class(z, label.cpu(), classes, held),
    }


def figures_of(card: dict[str, Any]) -> dict[str, Any]:
    """Returns a card's numbers as a metrics file holds them; a drift is that of the worst class."""
    figures = {name: card[name] for name in ("eigenvalues", "mean", "variance", "sigma", "round_trip", "rounding")}
    figures |= {"c2st": card["c2st"]["value"], "c2st_error": card["c2st"]["error"]}
    figures["c2st_by_class"] = {c: entry["c2st"]["value"] for c, entry in card["classes"].items() if entry["c2st"]}
    for name in ("mean_drift", "variance_drift"):
        if worst := worst_class(card, name):
            figures |= {name: worst[1].value, f"{name}_error": worst[1].error}
    return figures


def worst_class(card: dict[str, Any], name: str) -> tuple[str, Measured] | None:
    """Returns the class with the largest value above its error, and the two; None if no class has any.

    Arguments:
        card: What `measure` returned.
        name: "c2st", "mean_drift" or "variance_drift".
    """
    found = {c: Measured(**entry[name]) for c, entry in card["classes"].items() if entry[name]}
    return max(found.items(), key=lambda item: item[1].value - item[1].error, default=None)


def _by_class(z: Tensor, label: Tensor, classes: Sequence[str], held: HeldOut) -> dict[str, Any]:
    z, count, of_held = z.double().cpu(), torch.bincount(label, minlength=len(classes)), label[held.image]
    mean = drift(z.mean(1), label)
    # Deviations from the class's own mean, so that a drift of means is not counted twice.
    centre = torch.stack([z[label == c].mean((0, 1)) for c in range(len(classes))])
    variance = drift((z - centre[label][:, None]).square().mean(1), label)
    found: dict[str, Any] = {}
    for c, name in enumerate(classes):
        images = int(count[c])
        found[name] = {
            "images": images,
            "c2st": asdict(held.mean(of_held == c)) if images >= C2ST_IMAGES else None,
            "mean_drift": asdict(mean[c]) if images >= DRIFT_IMAGES else None,
            "variance_drift": asdict(variance[c]) if images >= DRIFT_IMAGES else None,
        }
    return found
