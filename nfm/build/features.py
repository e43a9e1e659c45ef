"""The feature network from its section, and to and from its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nfm.artifacts import load_tensors, save_tensors
from nfm.build.checks import check_format, check_shape
from nfm.config import Features
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.metrics.features import TURNS, Classifier, count_right, rotate

FORMAT = "nfm-features-2"


def features_arguments(section: Features, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Returns the classifier's constructor arguments, as they are stored beside the weights.

    Without classes it learns to tell quarter turns.

    Raises:
        InputError: There are no classes, and the images are not square, so that turns cannot stand in.
    """
    if not classes and shape[1] != shape[2]:
        raise InputError(
            f"the data set has no classes to train features on, and its images of {shape[1]}x{shape[2]} pixels cannot "
            "be turned by a quarter instead; sort them into one sub-folder per class, or make them square"
        )
    return {"shape": list(shape), "classes": classes or TURNS, "width": section.width}


def features_task(classes: int) -> Literal["class", "rotation"]:
    """Names what the classifier learns to tell: the classes, or quarter turns where there are none."""
    return "class" if classes else "rotation"


def make_features(arguments: dict[str, Any]) -> Classifier:
    """Builds an untrained classifier."""
    return Classifier(**{**arguments, "shape": tuple(arguments["shape"])})


def save_features(path: Path, model: torch.nn.Module, arguments: dict[str, Any], task: str) -> None:
    """Writes weights, arguments and what was learned, see `features_task`, to one safetensors file."""
    save_tensors(path, model.state_dict(), {"format": FORMAT, "model": arguments, "task": task})


@dataclass(frozen=True)
class TrainedFeatures:
    """A classifier, in evaluation mode and without gradients, and what it has learned to tell; see `features_task`."""

    model: Classifier
    task: str


def load_features(path: Path, shape: tuple[int, int, int], device: torch.device) -> TrainedFeatures:
    """Reads the classifier for images of a shape (C, H, W).

    Raises:
        InputError: The file is missing, corrupt, no feature network, or one for other images.
    """
    tensors, header = load_tensors(path)
    check_format(path, header, FORMAT)
    check_shape(path, header["model"]["shape"], shape)
    model = make_features(header["model"])
    model.load_state_dict(tensors)
    return TrainedFeatures(model.to(device).eval().requires_grad_(False), header["task"])


@torch.no_grad()
def measure_features(model: nn.Module, test: Split) -> dict[str, Any]:
    """Returns the classifier's task, and its accuracy in it on the test images."""
    pixels, label = _examples(test)
    return {"task": features_task(len(test.classes)), "accuracy": count_right(model, pixels, label) / len(pixels)}


def _examples(split: Split) -> tuple[Tensor, Tensor]:
    """Returns pixels and classes of a split; without labels every image in its four turns."""
    rows = torch.arange(len(split))
    pixels, label = split.raw(rows), split.labels(rows)
    if label is not None:
        return pixels, label
    turn = torch.arange(TURNS).repeat(len(split))
    return rotate(pixels.repeat_interleave(TURNS, 0), turn), turn
