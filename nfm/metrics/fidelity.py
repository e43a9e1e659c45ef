"""How near samples are to real images, by torch-fidelity.

The Fréchet distance is called FID on Inception's features and FD on any others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from nfm.artifacts import sha256
from nfm.errors import InputError
from nfm.metrics.features import Classifier

CLASSIFIER = "nfm-classifier"  # name under which torch-fidelity knows our features
INCEPTION = "inception-v3-compat"
INCEPTION_SHA256 = "6726825d"  # how the SHA-256 of the published weights begins
LAYER = "penultimate"


@dataclass(frozen=True)
class Fidelity:
    """Measures of a set of samples against a set of real images.

    Attributes:
        fd: Fréchet distance of the two Gaussians fitted to the features.
        kid: Kernel distance (squared MMD, cubic kernel), unbiased, so it can fall below 0.
        precision: Share of samples inside the neighbourhood of a real image.
        recall: Share of real images inside the neighbourhood of a sample.
    """

    fd: float
    kid: float
    precision: float
    recall: float


class ClassifierExtractor(FeatureExtractorBase):
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
        register_feature_extractor(CLASSIFIER, ClassifierExtractor)


def classifier_extractor(classifier: Classifier) -> ClassifierExtractor:
    """Returns the extractor of a trained classifier's 64 features."""
    return ClassifierExtractor(CLASSIFIER, [LAYER], classifier)


def inception(weights: Path, device: torch.device) -> FeatureExtractorBase:
    """Returns the extractor of Inception's 2048 features, on which the Fréchet distance is FID.

    Arguments:
        weights: File of torch-fidelity's weights, converted from those of the FID paper.
        device: Where it runs.

    Raises:
        InputError: The file is missing or another. It is a pickle, which is code: only the
            published one is opened.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017).
        https://arxiv.org/abs/1706.08500
    """
    published = "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0"
    if not weights.is_file():
        raise InputError(
            f"evaluate.inception is {weights}, which does not exist; put {published} there, or set it to null"
        )
    found = sha256(weights)
    if not found.startswith(INCEPTION_SHA256):
        raise InputError(
            f"evaluate.inception is {weights}, whose SHA-256 begins with {found[:8]}, expected "
            f"{INCEPTION_SHA256}, {published}"
        )
    extractor = create_feature_extractor(
        INCEPTION, ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=str(weights)
    )
    return extractor.to(device)


@torch.no_grad()
def extract(extractor: FeatureExtractorBase, images: Tensor, batch: int = 100) -> Tensor:
    """Computes the features of images.

    Arguments:
        extractor: From `classifier_extractor` or `inception`.
        images: Pixels as uint8, with shape (N, C, H, W); samples are brought to pixels first, as
            the real images are. Grey becomes three equal channels where Inception wants colour.
        batch: Images at once.

    Returns:
        Features with shape (N, F), on the CPU.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected uint8; use nfm.data's to_uint8")
    device = next(extractor.parameters()).device
    grey = extractor.get_name() != CLASSIFIER and images.shape[1] == 1
    parts = []
    for pixels in images.split(batch):
        pixels = pixels.to(device)
        parts.append(extractor(pixels.expand(-1, 3, -1, -1) if grey else pixels)[0].cpu())
    return torch.cat(parts)


def fidelity(
    real: Tensor,
    fake: Tensor,
    *,
    kid_subset_size: int = 500,
    kid_subsets: int = 20,
    neighbours: int = 3,
    seed: int = 0,
) -> Fidelity:
    r"""Measures samples against real images by their features, in float64.

    .. math:: \mathrm{FD} = \lVert \mu - \nu \rVert^2
        + \operatorname{tr}\bigl(\Sigma + \Gamma - 2 (\Sigma \Gamma)^{1/2}\bigr)

    with the means and covariances of both sets. KID is the mean over random subsets of the
    unbiased squared MMD with the kernel (x.y / F + 1)^3; it spreads least with large subsets, and
    20 of 500 cost a tenth of the usual 100 of 1000. Precision and recall take as radius the
    distance to the third nearest neighbour, which shrinks as a set grows, so both sets are cut to
    their first rows, as many as the smaller has.

    References:
        FID: Heusel et al., 2017. https://arxiv.org/abs/1706.08500
        KID: Demystifying MMD GANs (Bińkowski et al., 2018). https://arxiv.org/abs/1801.01401
        Improved Precision and Recall (Kynkäänniemi et al., 2019). https://arxiv.org/abs/1904.06991

    Arguments:
        real: Features of real images, with shape (N, F), in random order.
        fake: Features of samples, with shape (M, F), in random order.
        kid_subset_size: Images of each set in a subset of KID; fewer if a set has fewer.
        kid_subsets: Number of subsets.
        neighbours: Which nearest neighbour gives the radius.
        seed: Seed of KID's subsets.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}, expected (N, F) and (M, F)"
        )
    smaller = min(len(real), len(fake))
    if smaller <= neighbours:
        raise ValueError(f"the smaller set has {smaller} images, expected more than {neighbours}")
    # torch-fidelity keeps the dtype of the features, and float32 costs FD its last digits.
    real, fake = real.double().cpu(), fake.double().cpu()
    statistics = [fid_features_to_statistics(features) for features in (fake, real)]
    fd = fid_statistics_to_metric(*statistics, verbose=False)
    kid = kid_features_to_metric(
        fake,
        real,
        kid_subsets=kid_subsets,
        kid_subset_size=min(kid_subset_size, smaller),
        rng_seed=seed,
        verbose=False,
    )
    # In parts: the whole matrix of distances between 50,000 images takes 20 GB.
    prc = prc_features_to_metric(
        fake[:smaller],
        real[:smaller],
        prc_neighborhood=neighbours,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return Fidelity(
        fd=fd[KEY_METRIC_FID],
        kid=kid[KEY_METRIC_KID_MEAN],
        precision=prc[KEY_METRIC_PRECISION],
        recall=prc[KEY_METRIC_RECALL],
    )
