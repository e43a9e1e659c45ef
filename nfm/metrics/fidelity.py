"""How near samples are to real images, by torch-fidelity.

The Fréchet distance is called FID on Inception's features and FD on any others.
"""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
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

from nfm.errors import InputError
from nfm.metrics.features import Classifier
from nfm.metrics.statistics import Statistics

CLASSIFIER = "nfm-classifier"  # name under which torch-fidelity knows our features
INCEPTION = "inception-v3-compat"
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


def inception(weights: Path, sha256: str, device: torch.device) -> FeatureExtractorBase:
    """Returns the extractor of Inception's 2048 features, on which the Fréchet distance is FID.

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


def frechet(real: Statistics, fake: Statistics) -> float:
    r"""Returns the Fréchet distance of the Gaussians with the means and covariances of both sets.

    .. math:: \mathrm{FD} = \lVert \mu - \nu \rVert^2
        + \operatorname{tr}\bigl(\Sigma + \Gamma - 2 (\Sigma \Gamma)^{1/2}\bigr)

    With A A^T = Σ the product's eigenvalues are those of A^T Γ A, which is symmetric: they take a fraction of the time.
    Of fewer images than features, or where a feature is constant, Σ has no such root that rounding would not disturb,
    and torch-fidelity does it all.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017).
        https://arxiv.org/abs/1706.08500
    """
    _check_widths(real, fake)
    root, singular = torch.linalg.cholesky_ex(real.covariance)
    if singular or min(real.count, fake.count) <= len(real.mean):
        pair = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (fake, real)]
        return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]
    cross = torch.linalg.eigvalsh(root.T @ fake.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (real.mean - fake.mean).square().sum()
    return (apart + real.covariance.trace() + fake.covariance.trace() - 2 * cross).item()


def fidelity(
    real: Statistics,
    fake: Statistics,
    *,
    kid_subset_size: int = 500,
    kid_subsets: int = 20,
    neighbours: int = 3,
    seed: int = 0,
) -> Fidelity:
    r"""Measures samples against real images by their features, in float64.

    The Fréchet distance is over all images; KID, precision and recall over the rows that the
    statistics keep. KID is the mean over random subsets of the unbiased squared MMD with the kernel
    (x.y / F + 1)^3; it spreads least with large subsets, and 20 of 500 cost a tenth of the usual 100
    of 1000. Precision and recall take as radius the distance to the third nearest neighbour, which
    shrinks as a set grows, so both sets are cut to their first rows, as many as the smaller has.

    References:
        KID: Demystifying MMD GANs (Bińkowski et al., 2018). https://arxiv.org/abs/1801.01401
        Improved Precision and Recall (Kynkäänniemi et al., 2019). https://arxiv.org/abs/1904.06991

    Arguments:
        real: Statistics of real images in random order.
        fake: Statistics of samples in random order.
        kid_subset_size: Images of each set in a subset of KID; fewer if a set has fewer.
        kid_subsets: Number of subsets.
        neighbours: Which nearest neighbour gives the radius.
        seed: Seed of KID's subsets.
    """
    _check_widths(real, fake)
    smaller = min(len(real.rows), len(fake.rows))
    if smaller <= neighbours:
        raise ValueError(f"the smaller set has {smaller} images, expected more than {neighbours}")
    # torch-fidelity keeps the dtype of the features, and float32 costs the last digits.
    there, here = real.rows.double(), fake.rows.double()
    kid = kid_features_to_metric(
        here,
        there,
        kid_subsets=kid_subsets,
        kid_subset_size=min(kid_subset_size, smaller),
        rng_seed=seed,
        verbose=False,
    )
    # In parts: the whole matrix of distances between 10,000 images takes 0.8 GB.
    prc = prc_features_to_metric(
        here[:smaller],
        there[:smaller],
        prc_neighborhood=neighbours,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return Fidelity(
        fd=frechet(real, fake),
        kid=kid[KEY_METRIC_KID_MEAN],
        precision=prc[KEY_METRIC_PRECISION],
        recall=prc[KEY_METRIC_RECALL],
    )


def _check_widths(real: Statistics, fake: Statistics) -> None:
    if real.mean.shape != fake.mean.shape:
        raise ValueError(f"features are {len(real.mean)} and {len(fake.mean)} wide, expected the same")
