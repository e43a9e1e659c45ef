"""A coupling's card says what its noise is like, within errors that it states, and the gate judges by both."""

import numpy as np
import pytest
import torch

from nfm.coupling.card import figures_of, looked_at, measure, worst_class
from nfm.coupling.diagnostics import c2st, drift, noise_statistics, round_trip_error, spectrum_spread
from nfm.coupling.gate import HELP, Thresholds, judge
from nfm.figures import draw_card
from nfm.random import generator_for
from nfm.teacher.bijection import Affine

CLASSES = ("zero", "one")
GATE = Thresholds(c2st=0.57, eigenvalues=(0.5, 2.0), mean_drift=0.1, variance_drift=0.15, round_trip=1e-3)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator_for(seed))


def card_of(noise, label, classes=CLASSES, **changes):
    """A card of noise with shape (I, K, *event), with what a stage adds."""
    return {"sigma": 1.0, "round_trip": 1e-6, "rounding": 0.0, **measure(noise, label, classes, seed=0), **changes}


def test_noise_statistics_are_the_moments():
    z = torch.randn(100_000, 3, generator=generator_for(0), dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    moments = noise_statistics(z @ mix.T + torch.tensor([1.0, 0.0, -2.0]))
    # Deviations of 4.5 standard errors, each about spread times sqrt(2 / 100,000).
    expected = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(moments.mean, expected, rtol=0, atol=0.03)
    expected = torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(moments.variance, expected, rtol=0.02, atol=0)
    # [[1, .6], [.6, 1]] has the eigenvalues .4 and 1.6; the third dimension adds 4.
    assert moments.eigenvalues == pytest.approx((0.4, 4.0), rel=0.02)


def test_a_classifier_cannot_tell_normal_noise_but_tells_shift_and_shape():
    z = normal(200, 10, 4)
    found = c2st(z, None, seed=1).mean()
    # 100 images are held out with 20 rows each: a standard error of 0.011.
    assert found.error == pytest.approx(0.011, rel=0.3)
    assert found.value == pytest.approx(0.5, abs=4 * 0.011)
    assert c2st(z + 3, None, seed=1).mean().value > 0.97
    assert c2st(z * 3, None, seed=1).mean().value > 0.85


def test_the_classifier_is_tested_on_images_it_has_not_seen():
    # Draws of an image are nearly alike, images are N(0, I): who sees each image knows them all.
    z = normal(100, 1, 16) + 0.01 * normal(100, 20, 16, seed=1)
    assert c2st(z.reshape(2000, 1, 16), None, seed=0).mean().value > 0.9
    assert c2st(z, None, seed=0).mean().value < 0.65


def test_half_of_the_images_of_every_class_are_held_out():
    label = torch.tensor([0] * 40 + [1] * 8)
    held = c2st(normal(48, 6, 2), label, seed=0)
    assert torch.bincount(label[held.image]).tolist() == [20, 4]
    assert len(held.accuracy) == len(held.image.unique()) == 24


def test_the_classifier_tells_classes_apart_whose_noise_is_normal_only_together():
    # One class has the positive half of N(0, I), the other the negative half: three of four rows can be told.
    label = torch.arange(600) % 2
    z = normal(600, 4, 1).abs() * (2 * label - 1).reshape(-1, 1, 1)
    together = c2st(z, None, seed=0).mean()
    assert abs(together.value - 0.5) < 4 * together.error
    assert c2st(z, label, seed=0).mean().value > 0.7


def test_the_classifier_has_torchs_threads_since_their_number_changes_its_bits(monkeypatch):
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_info, threadpool_limits

    fit, seen = MLPClassifier.fit, []

    def watched(self, x, y):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return fit(self, x, y)

    monkeypatch.setattr(MLPClassifier, "fit", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as a stage has
    with threadpool_limits(2):
        c2st(normal(60, 2, 2), None, seed=0)
    assert set(seen) == {1}


def test_a_label_per_image_is_wanted():
    with pytest.raises(ValueError, match=r"label has shape \(3,\), expected \(4,\)"):
        c2st(torch.zeros(4, 2, 1), torch.arange(3), seed=0)


def test_a_drift_is_the_distance_of_means_and_its_error_what_chance_gives():
    label = torch.tensor([0] * 100 + [1] * 300)
    # Over 400 repetitions classes that do not differ drift by their error in the root mean square.
    squares = torch.zeros(2)
    for seed in range(400):
        found = drift(2 * normal(400, 5, seed=seed), label)
        squares += torch.tensor([(found[c].value / found[c].error) ** 2 for c in (0, 1)])
    # 2000 squares of normals: a standard error of 0.03.
    np.testing.assert_allclose(squares / 400, 1, atol=0.13)
    moved = drift(normal(400, 5) * 0.01 + label[:, None], label)
    assert [moved[c].value for c in (0, 1)] == pytest.approx([0.75, 0.25], abs=0.005)


def test_the_spread_of_a_normal_samples_spectrum_is_as_stated():
    low, high = spectrum_spread(2000, 200)
    assert noise_statistics(normal(2000, 200)).eigenvalues == pytest.approx((low, high), rel=0.05)
    assert (low, high) == pytest.approx((0.4675, 1.7325), abs=1e-3)
    assert spectrum_spread(10, 40)[0] == 0


@pytest.mark.parametrize(
    ("count", "draws", "expected"),
    [(1257, 16, (1257, 7)), (50_000, 16, (10_000, 1)), (1257, 2, (1257, 2)), (3, 16, (3, 16)), (9000, 3, (9000, 1))],
)
def test_a_card_looks_at_many_images_before_many_draws(count, draws, expected):
    assert looked_at(count, draws) == expected


def test_normal_noise_passes_the_gate_in_every_class():
    card = card_of(normal(600, 8, 1, 2, 2), torch.arange(600) % 2)
    assert judge(card, GATE).excess < 0
    assert set(card["classes"]) == set(CLASSES)
    assert card["looked_at"] == {"images": 600, "draws": 8}
    assert len(card["mean"]) == len(card["variance"]) == 4
    assert {entry["images"] for entry in card["classes"].values()} == {300}


def shift_one_class(z, label):
    return z + 0.4 * (label == 1).reshape(-1, 1, 1, 1, 1)


def test_a_class_that_is_only_shifted_has_no_drift_of_variance():
    label = torch.arange(600) % 2
    card = card_of(shift_one_class(normal(600, 8, 1, 2, 2), label) + 3 * label.reshape(-1, 1, 1, 1, 1), label)
    for entry in card["classes"].values():
        assert entry["mean_drift"]["value"] > 1
        assert entry["variance_drift"]["value"] < 4 * entry["variance_drift"]["error"]


def widen_one_class(z, label):
    return z * (1 + 0.25 * (label == 1).reshape(-1, 1, 1, 1, 1))


def stretch(z, label):
    return z * torch.tensor([1.6, 1.0, 1.0, 1.0]).reshape(2, 2)


def flatten(z, label):
    return z * torch.tensor([0.5, 1.0, 1.0, 1.0]).reshape(2, 2)


@pytest.mark.parametrize(
    ("twist", "measure", "words"),
    [
        (shift_one_class, "mean_drift", "mean_drift of class"),
        (widen_one_class, "variance_drift", "variance_drift of class"),
        (stretch, "eigenvalues", "the largest eigenvalue is 2.5"),
        (flatten, "eigenvalues", "the smallest eigenvalue is 0.2"),
    ],
)
def test_the_gate_names_what_is_worst(twist, measure, words):
    label = torch.arange(600) % 2
    worst = judge(card_of(twist(normal(600, 8, 1, 2, 2), label), label), GATE)
    assert worst.excess > 0
    assert worst.measure == measure
    assert words in str(worst)
    assert HELP[worst.measure]


def test_a_class_whose_noise_is_told_fails_though_the_whole_passes():
    label = (torch.arange(2000) % 10 == 0).long()
    z = normal(2000, 4, 1, 2, 4)
    heavy = torch.where(normal(2000, 4, 1, 1, 1, seed=1) > 0, 1.38, 0.3)  # of variance 1
    card = card_of(torch.where(label.reshape(-1, 1, 1, 1, 1) == 1, z * heavy, z), label)
    assert card["c2st"]["value"] < GATE.c2st
    worst = judge(card, GATE)
    assert str(worst).startswith("c2st of class 'one' is 0.")
    assert worst.excess > 0


def test_a_value_is_outside_only_beyond_its_error():
    card = card_of(normal(600, 2, 1, 2, 2), None, ())
    for value, error, outside in ((0.60, 0.02, True), (0.60, 0.04, False), (0.56, 0.0, False)):
        found = judge({**card, "c2st": {"value": value, "error": error}}, GATE)
        assert (found.excess > 0) == outside
    broken = judge({**card, "round_trip": 2e-3}, GATE)
    assert (broken.measure, broken.excess) == ("round_trip", pytest.approx(1.0))
    assert str(broken) == "round_trip is 0.002, expected at most 0.001"


def test_few_rows_of_many_dimensions_do_not_fail_a_normal_spectrum():
    card = card_of(normal(300, 1, 1, 10, 20), None, ())
    assert card["eigenvalues"][0] < 0.1
    assert card["eigenvalues"][1] > 2.5
    assert judge(card, GATE).excess < 0


def test_classes_of_few_images_have_no_numbers_of_their_own():
    label = torch.cat([torch.zeros(150), torch.ones(60), torch.full((20,), 2)]).long()
    card = card_of(normal(230, 2, 1, 2, 2), label, ("many", "some", "few"))
    known = {c: [k for k, v in entry.items() if v is not None] for c, entry in card["classes"].items()}
    assert known["many"] == ["images", "c2st", "mean_drift", "variance_drift"]
    assert known["some"] == ["images", "mean_drift", "variance_drift"]
    assert known["few"] == ["images"]
    assert set(figures_of(card)["c2st_by_class"]) == {"many"}


def test_a_card_without_labels_has_no_classes():
    card = card_of(normal(60, 2, 1, 2, 2), None)
    assert card["classes"] == {}
    assert worst_class(card, "mean_drift") is None
    assert "mean_drift" not in figures_of(card)


@pytest.mark.parametrize("label", [None, torch.arange(300) % 2])
def test_the_picture_states_the_cards_numbers(tmp_path, label):
    card = card_of(normal(300, 2, 1, 2, 2), label)
    figure = draw_card(card, tmp_path / "card.png")
    assert f"C2ST {card['c2st']['value']:.3f}" in figure.alt
    first = (tmp_path / "card.png").read_bytes()
    draw_card(card, tmp_path / "card.png")
    assert (tmp_path / "card.png").read_bytes() == first


class Off(Affine):
    """Decodes one pixel wrongly."""

    error = 0.25

    def decode(self, z, label=None, dropped=None):
        x = super().decode(z)
        x[1, 0, 1, 0] += self.error
        return x


def test_round_trip_error_is_the_largest_deviation():
    shift, scale = normal(2, 1, 2, 2).double()
    data = normal(5, 1, 2, 2).double()
    assert round_trip_error(Affine(shift, scale), data, None) < 1e-14
    off = Off(shift, scale)
    assert round_trip_error(off, data, None) == pytest.approx(0.25, abs=1e-14)
    off.error = float("nan")
    assert round_trip_error(off, data, None) > 1e300
