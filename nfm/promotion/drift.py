"""New data against old in feature space, before anything is trained on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfm.artifacts import read_json
from nfm.build.data import open_training_images
from nfm.build.features import load_features
from nfm.build.measure import BATCH, Reference, Ruler, features_path, load_reference, load_ruler, reference_path
from nfm.config import Params
from nfm.data.shards import Split
from nfm.metrics.features import count_right
from nfm.metrics.fidelity import extract, frechet
from nfm.metrics.statistics import Accumulator, Statistics
from nfm.promotion.judge import finite

IMAGES = 10_000  # new images, at most, that are looked at; shards are shuffled
SHOWN = 5  # features that have moved most


@dataclass(frozen=True)
class Drift:
    """How far new training images are from old ones.

    Attributes:
        fd: Fréchet distance of the new training images to the old ones.
        floor: That of the old held-out images to the old training images: what images of the same law show.
        images: Training images, old and new.
        accuracy: Of the old classifier on old held-out images and on new training images; None without classes, or
            where these are others.
        balance: Share of each class, old and new, by name.
        shift: Largest and mean move of a feature's mean, in old standard deviations.
        spread: Smallest and largest ratio of a feature's standard deviation, new over old.
        features: Number, move and ratio of those that moved most.
    """

    fd: float
    floor: float
    images: tuple[int, int]
    accuracy: tuple[float | None, float | None]
    balance: dict[str, tuple[float, float]]
    shift: tuple[float, float]
    spread: tuple[float, float]
    features: list[tuple[int, float, float]]

    @property
    def content(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return finite(asdict(self))

    @property
    def table(self) -> list[dict[str, Any]]:
        """The report in a few rows."""
        old, new = self.accuracy
        rows: list[dict[str, Any]] = [
            {"what": "images to train on", "old": self.images[0], "new": self.images[1]},
            {"what": "FD to the old training images", "old": round(self.floor, 3), "new": round(self.fd, 3)},
            {"what": "accuracy of the old classifier", "old": _rounded(old), "new": _rounded(new)},
            {"what": "largest move of a feature, old sd", "old": 0, "new": round(self.shift[0], 3)},
            {"what": "spread of a feature, smallest ratio", "old": 1, "new": round(self.spread[0], 3)},
            {"what": "spread of a feature, largest ratio", "old": 1, "new": round(self.spread[1], 3)},
        ]
        shares = [
            {"what": f"share of class {name}", "old": round(a, 4), "new": round(b, 4)}
            for name, (a, b) in self.balance.items()
        ]
        return rows + shares


def measure_drift(old: Path, new: Path, params: Params, device: torch.device) -> Drift | None:
    """Measures new training images by the features of the old ones.

    Arguments:
        old: A project's folder whose stages `features` and `reference` were up to date with the old data.
        new: One whose stage `prepare` is with the new data; may be the same where only the data were prepared anew.
        params: The new params.
        device: Where to compute.

    Returns:
        None where the new images have another shape.

    Raises:
        InputError: A file is missing or damaged.
    """
    train, held_out = (load_reference(reference_path(old, split)) for split in ("train", "test"))
    split = open_training_images(new, params, verify=False)
    if train.shape != split.visible.shape:
        return None
    ruler = load_ruler(params.evaluate.inception, old, split.visible.shape, device)
    classes = tuple(read_json(old / "artifacts" / "data" / "train" / "manifest.json")["classes"])
    statistics, labels = _features(ruler, split)
    right = _accuracy(old, split, device) if split.classes and split.classes == classes else None
    before = read_json(old / "metrics" / "features.json")
    return Drift(
        fd=frechet(train.statistics, statistics),
        floor=frechet(train.statistics, held_out.statistics),
        images=(train.statistics.count, len(split)),
        accuracy=(before.get("accuracy") if before.get("task") == "class" else None, right),
        balance=_balance(train, classes, labels, split.classes),
        **_moves(train.statistics, statistics),
    )


def _features(ruler: Ruler, split: Split) -> tuple[Statistics, Tensor | None]:
    images = split.visible
    rows = torch.arange(min(len(images), IMAGES))
    accumulator = Accumulator()
    for part in rows.split(BATCH):
        accumulator.add(extract(ruler.extractor, images.raw(part), BATCH))
    return accumulator.statistics(), images.labels(rows)


def _accuracy(old: Path, split: Split, device: torch.device) -> float | None:
    """Returns how often the old classifier sees what the new labels say."""
    images = split.visible
    found = load_features(features_path(old), images.shape, device)
    rows = torch.arange(min(len(images), IMAGES))
    labels = images.labels(rows)
    if found.task != "class" or labels is None:
        return None
    return count_right(found.model, images.raw(rows), labels) / len(rows)


def _balance(
    train: Reference, old: Sequence[str], labels: Tensor | None, new: Sequence[str]
) -> dict[str, tuple[float, float]]:
    shares = [_shares(train.labels, old), _shares(labels, new)]
    return {name: (shares[0].get(name, 0.0), shares[1].get(name, 0.0)) for name in sorted({*shares[0], *shares[1]})}


def _shares(labels: Tensor | None, classes: Sequence[str]) -> dict[str, float]:
    if labels is None or not classes:
        return {}
    counts = torch.bincount(labels, minlength=len(classes)).double()
    return dict(zip(classes, (counts / counts.sum()).tolist(), strict=True))


def _moves(old: Statistics, new: Statistics) -> dict[str, Any]:
    """Returns how each feature's mean and standard deviation have moved."""
    spread = old.covariance.diagonal().clamp(min=1e-12).sqrt()
    moved = (new.mean - old.mean).abs() / spread
    ratio = new.covariance.diagonal().clamp(min=0).sqrt() / spread
    most = moved.argsort(descending=True)[:SHOWN].tolist()
    return {
        "shift": (moved.max().item(), moved.mean().item()),
        "spread": (ratio.min().item(), ratio.max().item()),
        "features": [(i, moved[i].item(), ratio[i].item()) for i in most],
    }


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)
