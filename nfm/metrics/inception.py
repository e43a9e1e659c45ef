"""Inception as torch-fidelity has it, and our classifier by name for torch-fidelity's own commands.

Importing torch-fidelity takes longer than importing torch, so nothing imports this file but who wants either.
"""

import hashlib
import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from nfm.errors import InputError
from nfm.metrics.extract import Extractor
from nfm.metrics.features import Classifier

CLASSIFIER = "nfm-classifier"  # name under which torch-fidelity knows our features
INCEPTION = "inception-v3-compat"
LAYER = "penultimate"


class InceptionExtractor(Extractor):
    """Inception's 2048 features, on which the Fréchet distance is FID.

    Arguments:
        net: torch-fidelity's network.
    """

    def __init__(self, net: FeatureExtractorBase) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features, with shape (B, 2048); grey becomes three equal channels."""
        colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.net(colour)[0]


def inception(weights: Path, sha256: str, device: torch.device) -> InceptionExtractor:
    """Returns the extractor of Inception's features.

    torch-fidelity unpickles weights with all that a pickle may do, so it is handed ours: tensors that
    torch's restricted reader has let through.

    Arguments:
        weights: File of a state dict for torch-fidelity's Inception.
        sha256: What the file's SHA-256 has to be, in hexadecimal.
        device: Where it runs.

    Raises:
        InputError: The file is missing, has another checksum, or holds no such state dict.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017).
        https://arxiv.org/abs/1706.08500
    """
    if not weights.is_file():
        raise InputError(
            f"{weights} is missing, Inception's weights that evaluate.inception names; "
            "run `python -m nfm fetch`, or set evaluate.inception to null"
        )
    content = weights.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{weights} has {len(content)} bytes of SHA-256 {found}, evaluate.inception.sha256 is {sha256}; "
            "run `python -m nfm fetch`"
        )
    plain = BytesIO()
    try:
        torch.save(torch.load(BytesIO(content), map_location="cpu", weights_only=True), plain)
        plain.seek(0)
        extractor = create_feature_extractor(
            INCEPTION, ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=plain
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{weights} is no state dict of torch-fidelity's Inception ({reason[:200]}); "
            "name another source in evaluate.inception"
        ) from error
    return InceptionExtractor(extractor).to(device)


class NamedClassifier(FeatureExtractorBase):
    """Our classifier's penultimate layer as torch-fidelity's extractor.

    After `register_classifier`, torch-fidelity takes it by name too:
    ``calculate_metrics(feature_extractor="nfm-classifier", classifier=model, ...)``.

    Arguments:
        name: Name of the extractor.
        features_list: Layers asked for; there is one, "penultimate".
        classifier: The trained classifier.
        options: torch-fidelity's other settings, unused.
    """

    def __init__(self, name: str, features_list: Sequence[str], classifier: Classifier, **options: Any) -> None:
        super().__init__(name, features_list)
        self.classifier = classifier

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Returns the features, with shape (B, 64), of uint8 images with shape (B, C, H, W)."""
        return (self.classifier.features(input),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False


def register_classifier() -> None:
    """Makes our extractor known to torch-fidelity by its name; done twice, it does no harm."""
    if CLASSIFIER not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(CLASSIFIER, NamedClassifier)
