"""The measure of samples: features, the reference that they are held against, figures with their name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from nfm.artifacts import load_tensors, save_tensors, sha256
from nfm.build.checks import check_format
from nfm.build.features import TrainedFeatures, load_features
from nfm.config import INCEPTION, Evaluate, Inception
from nfm.data.autoencoder import load_autoencoder
from nfm.data.shards import Split, to_uint8
from nfm.metrics.features import FEATURES, count_right
from nfm.metrics.fidelity import classifier_extractor, extract, fidelity, frechet, inception
from nfm.metrics.statistics import Accumulator, Statistics
from nfm.metrics.yardstick import Yardstick, measure_names, shared_yardstick

FORMAT = "nfm-reference-2"
SPLITS = ("train", "test")
BATCH = 100  # images at once


@dataclass(frozen=True)
class Ruler:
    """What features are measured on.

    Attributes:
        extractor: Gives the features.
        features: How many of what network, with the digest of its file.
    """

    extractor: FeatureExtractorBase
    features: str


@dataclass(frozen=True)
class Reference:
    """One split's images, measured once.

    Attributes:
        dataset: Name of the data set.
        shape: Of an image, (C, H, W).
        features: What features, as the ruler has it.
        resize: How the images were brought to their size.
        statistics: Of the features.
        labels: Classes of the images in their order, with shape (N,), or None.
        learnt: Shape of what the models learn, (C, H, W): an image, or its latent.
        autoencoder: SHA-256 of what decodes latents; None for images.
    """

    dataset: str
    shape: tuple[int, int, int]
    features: str
    resize: str
    statistics: Statistics
    labels: Tensor | None
    learnt: tuple[int, int, int]
    autoencoder: str | None

    @property
    def yardstick(self) -> Yardstick:
        """What has to be the same where this is used."""
        return {"dataset": self.dataset, "features": self.features, "resize": self.resize}


def load_ruler(section: Inception | None, root: Path, shape: tuple[int, int, int], device: torch.device) -> Ruler:
    """Reads the network behind the features: our classifier, or Inception where it is named.

    Raises:
        InputError: The network's file is missing or damaged.
    """
    if section is not None:
        extractor = inception(root / INCEPTION, section.sha256, device)
        return Ruler(extractor, f"2048 of Inception {section.sha256[:16]}")
    path = features_path(root)
    found = load_features(path, shape, device)
    told = "" if found.task == "class" else " of quarter turns"
    return Ruler(classifier_extractor(found.model), f"{FEATURES} of a classifier{told} {sha256(path)[:16]}")


def measure_split(ruler: Ruler, split: Split) -> Reference:
    """Measures all images of a split, some at a time; of latents the images whose pixels were kept."""
    accumulator, images = Accumulator(), split.visible
    for rows in torch.arange(len(images)).split(BATCH):
        accumulator.add(extract(ruler.extractor, images.raw(rows), BATCH))
    return Reference(
        dataset=split.dataset,
        shape=images.shape,
        features=ruler.features,
        resize=split.notes,
        statistics=accumulator.statistics(),
        labels=images.labels(torch.arange(len(images))),
        learnt=split.shape,
        autoencoder=None if split.autoencoder is None else sha256(split.autoencoder),
    )


def save_reference(path: Path, reference: Reference) -> None:
    """Writes a reference to one safetensors file."""
    statistics = reference.statistics
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance, "rows": statistics.rows}
    if reference.labels is not None:
        tensors["labels"] = reference.labels
    header = {
        "format": FORMAT,
        "dataset": reference.dataset,
        "shape": list(reference.shape),
        "features": reference.features,
        "resize": reference.resize,
        "count": statistics.count,
        "learnt": list(reference.learnt),
        "autoencoder": reference.autoencoder,
    }
    save_tensors(path, tensors, header)


def load_reference(path: Path) -> Reference:
    """Reads a reference.

    Raises:
        InputError: The file is missing, corrupt, or no reference.
    """
    tensors, header = load_tensors(path)
    check_format(path, header, FORMAT)
    statistics = Statistics(header["count"], tensors["mean"], tensors["covariance"], tensors["rows"])
    return Reference(
        dataset=header["dataset"],
        shape=tuple(header["shape"]),
        features=header["features"],
        resize=header["resize"],
        statistics=statistics,
        labels=tensors.get("labels"),
        learnt=tuple(header["learnt"]),
        autoencoder=header["autoencoder"],
    )


class Measure:
    """Fidelity of samples to the test and the training images, and the accuracy of their labels.

    Arguments:
        ruler: What features are measured on.
        references: By split.
        classifier: The feature network, which also tells classes, or quarter turns where there are none.
        samples: Number of samples.
        inception: Whether the features are Inception's.
        pixels: Turns what a model has made, with shape (B, C, H, W), into uint8 pixels on the CPU.
    """

    def __init__(
        self,
        ruler: Ruler,
        references: Mapping[str, Reference],
        classifier: TrainedFeatures,
        *,
        samples: int,
        inception: bool,
        pixels: Callable[[Tensor], Tensor],
    ) -> None:
        self.pixels = pixels
        self.ruler, self.classifier = ruler, classifier.model
        self.train, self.test = references["train"], references["test"]
        self.names = measure_names(
            self.test.dataset, samples, inception=inception, rotation=classifier.task == "rotation"
        )
        self.yardstick: dict[str, Any] = {
            **self.test.yardstick,
            **self.names,
            "samples": samples,
            "test": self.test.statistics.count,
            "train": self.train.statistics.count,
        }

    def tally(self, shown: Sequence[int]) -> "Tally":
        """Returns an empty tally of samples, which keeps the rows that are to be shown."""
        return Tally(self, shown)


class Tally:
    """One set of samples, counted in as it is made; of the images it keeps those to be shown.

    Arguments:
        measure: What is measured.
        shown: Numbers of the samples to keep.
    """

    def __init__(self, measure: Measure, shown: Sequence[int]) -> None:
        self._measure, self._shown = measure, shown
        self._features, self._kept = Accumulator(), dict[int, Tensor]()
        self._count = 0
        self._right: int | None = None  # without labels nothing is right or wrong

    def add(self, images: Tensor, label: Tensor | None) -> None:
        """Takes the next samples: pixels, uint8 with shape (B, C, H, W), and the classes asked for."""
        self._features.add(extract(self._measure.ruler.extractor, images, BATCH))
        if label is not None:
            self._right = (self._right or 0) + count_right(self._measure.classifier, images, label)
        here = range(self._count, self._count + len(images))
        self._kept |= {row: images[row - self._count].clone() for row in self._shown if row in here}
        self._count += len(images)

    def figures(self) -> dict[str, float]:
        """Returns the measures by name; "accuracy" only where there are labels."""
        samples = self._features.statistics()
        figures = asdict(fidelity(self._measure.test.statistics, samples))
        figures["fd_train"] = frechet(self._measure.train.statistics, samples)
        return figures | ({} if self._right is None else {"accuracy": self._right / self._count})

    def images(self) -> Tensor:
        """Returns the samples to be shown, in the order asked for, with shape (K, C, H, W)."""
        return torch.stack([self._kept[row] for row in self._shown])


def load_measure(section: Evaluate, root: Path, device: torch.device) -> Measure:
    """Makes the measure against the references that the stage `reference` has left.

    Raises:
        InputError: A file is missing or damaged, or the references were measured with other features.
    """
    references = {split: load_reference(reference_path(root, split)) for split in SPLITS}
    test = references["test"]
    ruler = load_ruler(section.inception, root, test.shape, device)
    own = {"this run": {**test.yardstick, "features": ruler.features}}
    shared_yardstick(own | {str(reference_path(root, split)): r.yardstick for split, r in references.items()})
    classifier = load_features(features_path(root), test.shape, device)
    return Measure(
        ruler,
        references,
        classifier,
        samples=section.samples,
        inception=section.inception is not None,
        pixels=_pixels_of(test, root, device),
    )


def _pixels_of(test: Reference, root: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    if test.autoencoder is None:
        return lambda images: to_uint8(images).cpu()
    return load_autoencoder(autoencoder_path(root), test.autoencoder, device).decode


def features_path(root: Path) -> Path:
    """Returns where the feature network lies."""
    return root / "artifacts" / "features" / "features.safetensors"


def autoencoder_path(root: Path) -> Path:
    """Returns where what decodes latents lies."""
    return root / "artifacts" / "reference" / "autoencoder.safetensors"


def reference_path(root: Path, split: str) -> Path:
    """Returns where the reference of a split lies."""
    return root / "artifacts" / "reference" / f"{split}.safetensors"
