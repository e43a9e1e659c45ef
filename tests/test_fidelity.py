"""The feature network, and Fréchet distance, KID, precision and recall on its features."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import calculate_metrics

from nfm.data.shards import from_uint8
from nfm.data.source import digits
from nfm.metrics.features import Classifier, classifier_loss, count_right, shift
from nfm.metrics.fidelity import (
    Fidelity,
    classifier_extractor,
    extract,
    fidelity,
    frechet,
    register_classifier,
)
from nfm.metrics.statistics import Accumulator, Statistics
from nfm.random import generator_for


def classifier(shape: tuple[int, int, int] = (1, 8, 8)) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(shape, classes=10, width=16).eval()


def normal(count: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """Features whose own mean is `mean` and whose own covariance is root root^T, exactly."""
    x = torch.randn(count, len(mean), generator=generator_for(seed), dtype=torch.float64)
    x = x - x.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return mean + white @ root.T


def statistics(features: Tensor, batch: int = 64, keep: int = 10_000) -> Statistics:
    accumulator = Accumulator(keep)
    for part in features.split(batch):
        accumulator.add(part)
    return accumulator.statistics()


def measured(real: Tensor, fake: Tensor, **options: int) -> Fidelity:
    return fidelity(statistics(real), statistics(fake), **options)


def uniform_pixels(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    return torch.randint(256, (count, *shape), generator=generator_for(seed)).to(torch.uint8)


# Measures


def test_fd_of_gaussians_with_a_common_basis_is_known():
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator_for(3), dtype=torch.float64)).Q
    a = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.1], dtype=torch.float64)
    b = torch.tensor([2.0, 1.0, 0.5, 0.3, 4.0], dtype=torch.float64)
    mean = torch.arange(5, dtype=torch.float64)
    real = normal(400, torch.zeros(5, dtype=torch.float64), basis * a, seed=1)
    fake = normal(300, mean, basis * b, seed=2)
    expected = (mean.square().sum() + (a - b).square().sum()).item()
    # Eigenvalues of a 5x5 product, condition 1e3, in float64.
    assert measured(real, fake).fd == pytest.approx(expected, rel=1e-10)
    assert measured(fake, real).fd == pytest.approx(expected, rel=1e-10)


def test_fd_of_gaussians_with_other_bases_is_known():
    # 2x2: tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    root_a = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    root_b = torch.tensor([[0.3, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    a, b = root_a @ root_a.T, root_b @ root_b.T
    zero = torch.zeros(2, dtype=torch.float64)
    cross = math.sqrt((a @ b).trace().item() + 2 * math.sqrt((a @ b).det().item()))
    expected = (a.trace() + b.trace()).item() - 2 * cross
    found = measured(normal(50, zero, root_a, 1), normal(70, zero, root_b, 2)).fd
    assert found == pytest.approx(expected, rel=1e-10)


def test_fd_of_a_set_with_itself_is_zero():
    x = torch.randn(200, 64, generator=generator_for(0))
    assert measured(x, x.flip(0)).fd == pytest.approx(0, abs=1e-10)


def test_fd_of_float32_features_is_that_of_their_exact_values():
    # A mean of 1000 and a spread of 0.01: sums in float32 lose the difference.
    x = 1000 + 0.01 * torch.randn(500, 3, generator=generator_for(0))
    y = x + 0.05
    assert measured(x, y).fd == pytest.approx(measured(x.double(), y.double()).fd, rel=1e-9)


def test_kid_of_two_points_is_known():
    a, b = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, -1.0, 1.0])

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    found = measured(a.expand(30, 3), b.expand(20, 3)).kid
    assert found == pytest.approx(expected, rel=1e-12)


def test_kid_of_one_distribution_is_zero_on_average():
    values = torch.tensor(
        [
            measured(
                torch.randn(60, 8, generator=generator_for(seed, 0)),
                torch.randn(60, 8, generator=generator_for(seed, 1)),
            ).kid
            for seed in range(100)
        ],
        dtype=torch.float64,
    )
    # Normal approximation: |mean| stays below 4 standard errors but for 6 in 100,000 choices of
    # seeds. The biased estimator is off by 40.
    error = values.std() / math.sqrt(len(values))
    assert values.mean().abs() < 4 * error
    assert values.min() < 0 < values.max()


def test_precision_and_recall_tell_missing_modes_from_bad_samples():
    generator = generator_for(0)
    here = torch.randn(200, 4, generator=generator)
    there = torch.randn(200, 4, generator=generator) + 100
    order = torch.randperm(200, generator=generator)
    both = torch.cat([here[:100], there[:100]])[order]
    one = here[100:].repeat(2, 1)[order] + 0.01 * torch.randn(200, 4, generator=generator)
    dropped, spurious = measured(both, one), measured(one, both)
    assert dropped.precision > 0.8
    assert dropped.recall < 0.55
    assert spurious.precision < 0.55
    assert spurious.recall > 0.8


def test_kid_is_a_function_of_its_seed():
    real, fake = (torch.randn(80, 4, generator=generator_for(seed)) for seed in (0, 1))
    first, again, other = (measured(real, fake, kid_subset_size=40, seed=s).kid for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_torch_fidelity_itself_measures_the_same_by_the_registered_name():
    model = classifier()
    real, fake = uniform_pixels(60, (1, 8, 8), 0), uniform_pixels(60, (1, 8, 8), 1) // 2
    register_classifier()
    register_classifier()
    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="nfm-classifier",
        classifier=model,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=20,
        kid_subset_size=50,
        rng_seed=7,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    extractor = classifier_extractor(model)
    ours = measured(extract(extractor, real), extract(extractor, fake), kid_subset_size=50, seed=7)
    # torch-fidelity averages features in float32: 60 roundings of 6e-8, relative to features of
    # order 1, beside differences of order 1e-2.
    assert ours.fd == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)


class Images(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_features_of_other_widths_cannot_be_compared():
    with pytest.raises(ValueError, match="features are 4 and 5 wide"):
        measured(torch.zeros(9, 4), torch.zeros(9, 5))


# Statistics in batches


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
def test_statistics_in_batches_are_those_of_numpy(batch):
    # A mean 10^5 times the spread: sums of squares in float64 would lose ten digits of sixteen.
    x = 1e5 + torch.randn(300, 5, generator=generator_for(0), dtype=torch.float64) @ torch.randn(
        5, 5, generator=generator_for(1), dtype=torch.float64
    )
    found = statistics(x, batch)
    assert found.count == 300
    np.testing.assert_allclose(found.mean, np.mean(x.numpy(), axis=0), rtol=1e-14)
    # Deviations from the mean carry its rounding, 10^5 times 1e-16.
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=1e-9)


def test_the_first_rows_are_kept_whatever_the_batch():
    x = torch.randn(50, 3, generator=generator_for(0))
    for batch in (1, 20, 50):
        assert torch.equal(statistics(x, batch, keep=30).rows, x[:30])
    assert torch.equal(statistics(x, keep=60).rows, x)


def test_rows_that_are_not_kept_change_the_distance_and_nothing_else():
    real = torch.randn(60, 4, generator=generator_for(0))
    fake = torch.randn(90, 4, generator=generator_for(1))
    few, all_ = (fidelity(statistics(real), statistics(rows, keep=40)) for rows in (fake[:40], fake))
    assert (few.kid, few.precision, few.recall) == (all_.kid, all_.precision, all_.recall)
    assert few.fd != all_.fd == frechet(statistics(real), statistics(fake))


def test_no_batch_is_held_on_to():
    accumulator = Accumulator(keep=25)
    for step in range(20):
        # A tensor over an array keeps it alive, and so does a view of that tensor.
        array = np.random.default_rng(step).standard_normal((10, 3), np.float32)
        alive = weakref.ref(array)
        accumulator.add(torch.from_numpy(array))
        del array
        assert alive() is None
    found = accumulator.statistics()
    assert (found.count, len(found.rows)) == (200, 25)


def test_features_of_another_width_do_not_add_up_and_one_image_has_no_covariance():
    accumulator = Accumulator()
    accumulator.add(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(B, 3\)"):
        accumulator.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="features of 1 images, expected at least 2"):
        accumulator.statistics()


# Extraction


def test_features_do_not_depend_on_the_batch():
    extractor = classifier_extractor(classifier().double())
    images = uniform_pixels(7, (1, 8, 8), 0)
    torch.testing.assert_close(extract(extractor, images, batch=3), extract(extractor, images, batch=7))


def test_pixels_and_the_models_scale_give_the_same_features():
    model, images = classifier(), uniform_pixels(5, (1, 8, 8), 0)
    with torch.no_grad():
        expected = model.features(from_uint8(images))
    assert torch.equal(extract(classifier_extractor(model), images), expected)


def test_samples_that_are_not_yet_pixels_are_refused():
    with pytest.raises(ValueError, match=r"float32, expected uint8"):
        extract(classifier_extractor(classifier()), torch.zeros(2, 1, 8, 8))


# The classifier


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 16, 24), (3, 64, 64)])
def test_the_classifier_sees_every_pixel_of_any_shape(shape):
    model = classifier(shape)
    x = torch.zeros(1, *shape, requires_grad=True)
    model.features(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_the_classifier_learns_the_digits_in_a_few_updates():
    source, model = digits(0.3, seed=0), classifier().train()
    (pixels, label), (test, test_label) = ((split.images(), split.labels) for split in (source.train, source.test))
    assert label is not None
    assert test_label is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        generator = generator_for(0, step)
        index = torch.randint(len(pixels), (64,), generator=generator)
        loss = classifier_loss(model, from_uint8(pixels[index]), label[index], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert count_right(model.eval(), test, test_label) > 0.9 * len(test)


def test_the_loss_is_a_function_of_the_generator():
    model, data = classifier(), from_uint8(uniform_pixels(8, (1, 8, 8), 0))
    label = torch.arange(8)
    first, again, other = (classifier_loss(model, data, label, generator_for(seed)).item() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_shifts_move_an_image_whole_and_reach_every_place():
    image = torch.full((1, 2, 5, 7), -1.0)
    image[0, 0, 2, 3], image[0, 1, 3, 2] = 1.0, 0.5
    seen = set()
    for moved in shift(image.expand(400, -1, -1, -1), 1, generator_for(0)):
        ((row, column),) = (moved[0] == 1).nonzero().tolist()
        seen.add((row - 2, column - 3))
        assert moved[1, row + 1, column - 1] == 0.5
        assert (moved == -1).sum() == image.numel() - 2
    # A place of 9 is missed by 400 draws once in 10^19.
    assert seen == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


def test_shifts_let_black_in_and_change_nothing_given():
    image = torch.ones(50, 1, 4, 4)
    moved = shift(image, 1, generator_for(0))
    assert set(moved.unique().tolist()) == {-1.0, 1.0}
    assert (image == 1).all()


def test_right_are_the_images_in_their_own_class():
    class Brightest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.flatten(1).float()

    images = torch.eye(4, dtype=torch.uint8).reshape(4, 1, 2, 2).repeat(3, 1, 1, 1)
    label = torch.arange(4).repeat(3)
    label[[1, 6, 11]] = 0
    assert count_right(Brightest(), images, label, batch=5) == 9


@pytest.mark.parametrize(("classes", "width"), [(1, 16), (10, 12)])
def test_a_classifier_that_cannot_be_built_is_refused(classes, width):
    with pytest.raises(ValueError, match="expected"):
        Classifier((1, 8, 8), classes, width)
