"""How good a coupling's noise is: moments, a two-sample test against N(0, I), round trip."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfm.random import generator_for
from nfm.teacher.bijection import Bijection


@dataclass(frozen=True)
class NoiseStatistics:
    """Moments of noise over images and draws; N(0, I) has mean 0, variance 1, eigenvalues 1.

    Attributes:
        mean: Mean per dimension, with shape (D,).
        variance: Variance per dimension, with shape (D,).
        eigenvalues: Smallest and largest eigenvalue of the covariance.
    """

    mean: Tensor
    variance: Tensor
    eigenvalues: tuple[float, float]


ROWS = 10_000  # of noise, at most, that are looked at


def diagnose(noise: np.ndarray, sigma: float, *, seed: int) -> dict[str, Any]:
    """Compares a teacher's noise with N(0, I) on up to 10,000 of its draws.

    Arguments:
        noise: f of N images, K draws each, an array with shape (N, K, *event); images are in no
            order.
        sigma: sigma_f, which the noise is divided by.
        seed: Seed of the two-sample test.

    Returns:
        "c2st", "eigenvalues" (smallest, largest), and the lists "mean" and "variance" over
        dimensions.
    """
    images = max(2, min(len(noise), ROWS // noise.shape[1]))
    z = torch.from_numpy(noise[:images].astype(np.float32)).flatten(0, 1).flatten(1) / sigma
    image = torch.arange(images).repeat_interleave(noise.shape[1])
    moments = noise_statistics(z)
    return {
        "c2st": c2st(z, image, seed=seed),
        "eigenvalues": list(moments.eigenvalues),
        "mean": moments.mean.tolist(),
        "variance": moments.variance.tolist(),
    }


def noise_statistics(z: Tensor) -> NoiseStatistics:
    """Computes moments of noise, with shape (N, D), in float64."""
    z = z.double()
    mean = z.mean(0)
    covariance = torch.cov(z.T)
    values = torch.linalg.eigvalsh(covariance)
    return NoiseStatistics(mean, covariance.diagonal(), (values[0].item(), values[-1].item()))


def c2st(z: Tensor, groups: Tensor, *, seed: int) -> float:
    """Tells noise from N(0, I) by a classifier: the accuracy on held-out images; 0.5 is perfect.

    A classifier two-sample test. Half of the images are for training, half for testing, so that no
    image's draws are on both sides. The classifier is scikit-learn's MLP with 128 hidden units,
    which also sees the squares of z.

    References:
        Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017). https://arxiv.org/abs/1610.06545

    Arguments:
        z: Noise, with shape (N, D).
        groups: Which image each row belongs to, with shape (N,).
        seed: Seed of the split, the normal sample and the classifier.
    """
    from sklearn.neural_network import MLPClassifier  # takes seconds to import

    if groups.shape != z.shape[:1]:
        raise ValueError(f"groups have shape {tuple(groups.shape)}, expected ({len(z)},), one image per row of z")
    generator = generator_for(seed)
    groups = groups.cpu()
    images = groups.unique()
    shuffled = images[torch.randperm(len(images), generator=generator)]
    held_out = torch.isin(groups, shuffled[: len(images) // 2]).numpy()
    normal = torch.randn(z.shape, generator=generator).numpy()
    x = np.concatenate([z.cpu().float().numpy(), normal])
    x = np.concatenate([x, x**2], 1)
    y = np.repeat([1, 0], len(z))
    test = np.concatenate([held_out, held_out])
    classifier = MLPClassifier((128,), early_stopping=True, max_iter=60, random_state=seed)
    classifier.fit(x[~test], y[~test])
    return float(classifier.score(x[test], y[test]))


@torch.no_grad()
def round_trip_error(teacher: Bijection, x: Tensor, label: Tensor | None) -> float:
    """Returns the largest |decode(encode(x)) - x| over images, with shape (B, C, H, W)."""
    z, _ = teacher.encode(x, label)
    return (teacher.decode(z, label) - x).abs().max().item()
