"""How good a coupling's noise is: moments, drift between classes, a two-sample test against N(0, I), round trip."""

import warnings
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Measured:
    """A number and what it deviates by from sampling alone, its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class HeldOut:
    """A classifier's accuracy on each image that it was not trained on.

    Attributes:
        image: Numbers of those images, with shape (I,).
        accuracy: Share of an image's draws, and of as many normal ones, that are told right, with
            shape (I,).
    """

    image: Tensor
    accuracy: Tensor

    def mean(self, among: Tensor | None = None) -> Measured:
        """Returns the accuracy over images, the independent units, with its standard error.

        Arguments:
            among: True for the images that count, with shape (I,); None for all.
        """
        values = self.accuracy if among is None else self.accuracy[among]
        return Measured(values.mean().item(), (values.std() / len(values) ** 0.5).item())


def noise_statistics(z: Tensor) -> NoiseStatistics:
    """Computes moments of noise, with shape (N, D), in float64."""
    z = z.double()
    mean = z.mean(0)
    covariance = torch.cov(z.T)
    values = torch.linalg.eigvalsh(covariance)
    return NoiseStatistics(mean, covariance.diagonal(), (values[0].item(), values[-1].item()))


def c2st(z: Tensor, label: Tensor | None, *, seed: int) -> HeldOut:
    """Tells noise from N(0, I) by a classifier; an accuracy of 0.5 is perfect.

    A classifier two-sample test. Half of the images of each class are for training, half for
    testing, so that no image's draws are on both sides. The classifier is scikit-learn's MLP with
    128 hidden units, which also sees the squares of z, and the label where there is one: what it
    tells apart are (z, c) and (N(0, I), c). One is trained for all classes.

    References:
        Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017). https://arxiv.org/abs/1610.06545

    Arguments:
        z: Noise of I images, K draws each, with shape (I, K, D).
        label: Class labels, with shape (I,), or None.
        seed: Seed of the split, the normal sample and the classifier.
    """
    from sklearn.neural_network import MLPClassifier  # takes seconds to import
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    if label is not None and label.shape != z.shape[:1]:
        raise ValueError(f"label has shape {tuple(label.shape)}, expected ({len(z)},), one an image")
    generator = generator_for(seed)
    test = _held_out(len(z), label, generator)
    normal = torch.randn(z.shape, generator=generator)
    given = [_seen(z.cpu().float(), label), _seen(normal, label)]
    x = np.concatenate([part[~test].flatten(0, 1) for part in given])
    classifier = MLPClassifier((128,), early_stopping=True, max_iter=60, random_state=seed)
    # numpy's threads are as many as cores, and their number changes the bits.
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 60 rounds were not enough; it then tells z well before
        classifier.fit(x, np.repeat([1, 0], len(x) // 2))
    right = [
        torch.from_numpy(classifier.predict(part[test].flatten(0, 1).numpy()) == kind).reshape(-1, z.shape[1])
        for part, kind in zip(given, (1, 0), strict=True)
    ]
    return HeldOut(test.nonzero()[:, 0], torch.cat(right, 1).double().mean(1))


def drift(values: Tensor, label: Tensor) -> dict[int, Measured]:
    r"""Measures how far each class's mean of some values lies from the mean of all.

    .. math:: \lVert m_c - m \rVert / \sqrt{D}

    The error is the root of what the square would be expected to be if classes did not differ: the
    variance of images in the class, over their number.

    Arguments:
        values: One row an image, with shape (I, D).
        label: Class labels, with shape (I,).

    Returns:
        By class; classes of one image are left out.
    """
    mean, found = values.mean(0), {}
    for c in label.unique().tolist():
        mine = values[label == c]
        if len(mine) > 1:
            chance = mine.var(0).mean() * (1 / len(mine) - 1 / len(values))
            found[c] = Measured((mine.mean(0) - mean).square().mean().sqrt().item(), chance.sqrt().item())
    return found


def spectrum_spread(rows: int, dimensions: int) -> tuple[float, float]:
    r"""Returns the eigenvalues that sampling alone gives the covariance of N(0, I).

    .. math:: (1 \mp \sqrt{D / N})^2

    References:
        Distribution of eigenvalues for some sets of random matrices (Marchenko & Pastur, 1967).

    Arguments:
        rows: Number of draws, N.
        dimensions: Of a draw, D.
    """
    root = (dimensions / rows) ** 0.5
    return max(0.0, 1 - root) ** 2, (1 + root) ** 2


@torch.no_grad()
def round_trip_error(teacher: Bijection, x: Tensor, label: Tensor | None) -> float:
    """Returns the largest |decode(encode(x)) - x| over images, with shape (B, C, H, W).

    One that is not finite counts as the largest number of the images' type.
    """
    z, _ = teacher.encode(x, label)
    limit = torch.finfo(x.dtype).max
    return (teacher.decode(z, label) - x).abs().nan_to_num(limit, limit).max().item()


def _held_out(count: int, label: Tensor | None, generator: torch.Generator) -> Tensor:
    """Marks half of the images of each class, with shape (I,)."""
    marked, label = torch.zeros(count, dtype=torch.bool), torch.zeros(count) if label is None else label.cpu()
    for c in label.unique():
        rows = (label == c).nonzero()[:, 0]
        marked[rows[torch.randperm(len(rows), generator=generator)][: len(rows) // 2]] = True
    return marked


def _seen(z: Tensor, label: Tensor | None) -> Tensor:
    """Returns what the classifier sees of noise, with shape (I, K, F)."""
    parts = [z, z.square()]
    if label is not None:
        classes = label.cpu().unique(return_inverse=True)[1]
        parts.append(torch.nn.functional.one_hot(classes).float()[:, None].expand(-1, z.shape[1], -1))
    return torch.cat(parts, 2)
