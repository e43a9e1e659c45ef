"""The feature network from its section, and to and from its file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nfm.artifacts import load_tensors, save_tensors
from nfm.build.checks import check_format, check_shape
from nfm.config import Features
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.metrics.features import Classifier, count_right

FORMAT = "nfm-features-1"


def features_arguments(section: Features, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Returns the classifier's constructor arguments, as they are stored beside the weights.

    Raises:
        InputError: The data set has no classes to learn features from.
    """
    if not classes:
        raise InputError(
            "the data set has no classes to train features on; name Inception's weights in "
            "evaluate.inception and leave this stage out"
        )
    return {"shape": list(shape), "classes": classes, "width": section.width}


def make_features(arguments: dict[str, Any]) -> Classifier:
    """Builds an untrained classifier."""
    return Classifier(**{**arguments, "shape": tuple(arguments["shape"])})


def save_features(path: Path, model: torch.nn.Module, arguments: dict[str, Any]) -> None:
    """Writes weights and arguments to one safetensors file."""
    save_tensors(path, model.state_dict(), {"format": FORMAT, "model": arguments})


def load_features(path: Path, shape: tuple[int, int, int], device: torch.device) -> Classifier:
    """Reads the classifier for images of a shape (C, H, W), in evaluation mode and without gradients.

    Raises:
        InputError: The file is missing, corrupt, no feature network, or one for other images.
    """
    tensors, header = load_tensors(path)
    check_format(path, header, FORMAT)
    check_shape(path, header["model"]["shape"], shape)
    model = make_features(header["model"])
    model.load_state_dict(tensors)
    return model.to(device).eval().requires_grad_(False)


@torch.no_grad()
def measure_features(model: nn.Module, test: Split) -> dict[str, Any]:
    """Returns the classifier's test accuracy."""
    rows = torch.arange(len(test))
    label = test.labels(rows)
    assert label is not None
    return {"accuracy": count_right(model, test.raw(rows), label) / len(test)}
