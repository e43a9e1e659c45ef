"""Every coupling keeps both marginals and the labels, and does what it is named for.

Statistical tests run at a false-alarm rate of 1e-4 each, divided by the number of p-values in them, on fixed seeds.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from nfm.coupling.base import Batch, Whole
from nfm.coupling.independent import Independent
from nfm.coupling.minibatch_ot import MinibatchOT, assign
from nfm.coupling.semidiscrete_ot import SemidiscreteOT, fit_potentials
from nfm.coupling.teacher import TeacherDraws, TeacherOnline, encode_draws
from nfm.random import generator_for
from nfm.store import Rows
from nfm.teacher.bijection import Affine

ALPHA = 1e-4
NOISE_STD = 0.5


class Turned(Affine):
    """An affine bijection followed by a rotation, a matrix product as networks are made of."""

    def encode(self, x, label=None, dropped=None):
        z, log_det = super().encode(x)
        turn = torch.linalg.qr(torch.randn(4, 4, generator=generator_for(0))).Q
        return (z.flatten(1) @ turn).reshape(x.shape), log_det


def teacher_for(data):
    """A bijection that makes N(0, I) of Gaussian data plus noise."""
    spread = (data.double().var(0) + NOISE_STD**2).sqrt().to(data)
    return Turned(data.mean(0), spread.log())


def stored(data, label):
    noise = encode_draws(teacher_for(data), data, label, noise_std=NOISE_STD, draws=3, seed=1)
    return TeacherDraws(Rows.of([noise[:4], noise[4:]]))


# Each is made for a data set. Zero potentials are exact for `orbits`, by its symmetry.
COUPLINGS = {
    "independent": lambda data, label: Independent(),
    "minibatch-ot": lambda data, label: MinibatchOT(),
    "semidiscrete-ot": lambda data, label: SemidiscreteOT(data, label, torch.zeros(len(data))),
    "teacher-draws": stored,
    "teacher-online": lambda data, label: TeacherOnline(teacher_for(data), NOISE_STD, 1.0),
}
every_coupling = pytest.mark.parametrize("name", COUPLINGS)


def orbits():
    """Two classes of 8 and 16 points, each all permutations or reflections of one."""
    axes = 1.5 * torch.cat([torch.eye(4), -torch.eye(4)])
    corners = 0.5 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    data = torch.cat([axes, corners]).reshape(24, 1, 2, 2)
    order = torch.randperm(24, generator=generator_for(0))
    return data[order], (torch.arange(24) >= 8).long()[order]


def gaussian(count):
    """Normal data in two classes."""
    data = torch.randn(count, 1, 2, 2, generator=generator_for(0)) * 0.8 + 0.3
    return data, torch.randint(2, (count,), generator=generator_for(1))


def pairs_of(coupling, data, label, rows, batch):
    """Draws pairs for rows of a data set, batch by batch, and concatenates them."""
    generator = generator_for(7)
    parts = [
        coupling.pair(Batch(i, data[i], None if label is None else label[i]), generator) for i in rows.split(batch)
    ]
    joined = [torch.cat([getattr(p, key) for p in parts]) for key in ("data", "noise")]
    return *joined, None if label is None else torch.cat([p.label for p in parts])


def identify(chosen, data):
    """Returns which row of the data set each image is."""
    same = (chosen.flatten(1)[:, None] == data.flatten(1)).all(2)
    assert (same.sum(1) == 1).all()
    return same.float().argmax(1)


def normality(z):
    """Returns p-values of z, with shape (N, D), against N(0, I): each dimension, and the radius."""
    z = z.flatten(1).numpy()
    radius = stats.kstest((z**2).sum(1), stats.chi2(z.shape[1]).cdf).pvalue
    return [*(stats.kstest(column, "norm").pvalue for column in z.T), radius]


@every_coupling
def test_data_and_labels_keep_their_marginal(name):
    data, label = orbits()
    rows = torch.randint(24, (24_000,), generator=generator_for(2))
    chosen, _, labels = pairs_of(COUPLINGS[name](data, label), data, label, rows, 64)
    index = identify(chosen, data)
    assert torch.equal(labels, label[index])
    assert stats.chisquare(torch.bincount(index, minlength=24)).pvalue > ALPHA


@every_coupling
def test_noise_is_standard_normal_in_each_class(name):
    # Every image once: reuse would tie the teacher's noise of several pairs to one image.
    data, label = gaussian(16_000)
    coupling = COUPLINGS[name](data, label)
    _, noise, labels = pairs_of(coupling, data, label, torch.arange(16_000), 64)
    values = [*normality(noise), *normality(noise[labels == 0]), *normality(noise[labels == 1])]
    assert min(values) > ALPHA / len(values)


@every_coupling
def test_pairing_changes_nothing_and_repeats_with_its_generator(name):
    data, label = orbits()
    coupling, index = COUPLINGS[name](data, label), torch.arange(24)
    batch = Batch(index.clone(), data.clone(), label.clone())
    first, again = (coupling.pair(batch, generator_for(3)) for _ in range(2))
    other = coupling.pair(batch, generator_for(4))
    for given, before in ((batch.index, index), (batch.data, data), (batch.label, label)):
        assert torch.equal(given, before)
    assert torch.equal(first.data, again.data)
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)


@every_coupling
def test_pairing_works_without_labels(name):
    data, _ = orbits()
    rows = torch.arange(24).repeat(4)
    chosen, noise, label = pairs_of(COUPLINGS[name](data, None), data, None, rows, 32)
    assert label is None
    identify(chosen, data)
    assert noise.shape == chosen.shape


@every_coupling
def test_mixed_precision_of_the_student_leaves_the_endpoints_alone(name):
    data, label = gaussian(300)
    coupling, batch = COUPLINGS[name](data, label), Batch(torch.arange(300), data, label)
    plain = coupling.pair(batch, generator_for(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = coupling.pair(batch, generator_for(3))
    assert mixed.noise.dtype == torch.float32
    assert torch.equal(plain.data, mixed.data)
    assert torch.equal(plain.noise, mixed.noise)


def test_assignment_costs_as_little_as_the_best_of_all_permutations():
    permutations = torch.tensor(list(itertools.permutations(range(6))))
    for seed in range(20):
        x, z = torch.randn(2, 6, 1, 1, 3, generator=generator_for(seed), dtype=torch.float64)
        distance = (x[:, None] - z).square().flatten(2).sum(2)
        best = distance[range(6), permutations].sum(1).min()
        order = assign(x, z)
        assert sorted(order.tolist()) == list(range(6))
        torch.testing.assert_close(distance[range(6), order].sum(), best)


def test_minibatch_ot_only_permutes_and_only_inside_a_class():
    data, label = gaussian(64)
    batch = Batch(torch.arange(64), data, label)
    plain = Independent().pair(batch, generator_for(5)).noise
    pairs = MinibatchOT().pair(batch, generator_for(5))
    origin = identify(pairs.noise, plain)
    assert torch.equal(origin.sort().values, torch.arange(64))
    assert torch.equal(label[origin], label)
    for c in (0, 1):
        rows = label == c
        best = plain[rows][assign(data[rows], plain[rows])]
        assert torch.equal(pairs.noise[rows], best)


@pytest.mark.parametrize("across", [True, False])
def test_parts_of_a_whole_batch_are_paired_as_the_batch_is(across):
    data, label = gaussian(64)
    rows, reads = torch.arange(64), []

    def part(start: int, stop: int, step: int) -> Batch:
        def read() -> Batch:
            reads.append(step)
            return Batch(rows, data, label)

        here = slice(start, stop)
        return Batch(rows[here], data[here], label[here], Whole(read, here, 7, step))

    # Two processes with generators of their own, of which the first has two forward passes.
    first, second = MinibatchOT(across, whole_batch=True), MinibatchOT(across, whole_batch=True)
    found = [
        first.pair(part(0, 20, 0), generator_for(1)).noise,
        first.pair(part(20, 33, 0), generator_for(2)).noise,
        second.pair(part(33, 64, 0), generator_for(3)).noise,
    ]
    noise = torch.cat(found)
    assert reads == [0, 0]  # once by each
    for c in [None] if across else [0, 1]:
        of = slice(None) if c is None else label == c
        assert torch.equal(assign(data[of], noise[of]), torch.arange(len(data[of])))  # none is nearer in sum
    another = second.pair(part(33, 64, 1), generator_for(3)).noise
    assert not torch.equal(another, found[2])
    assert reads == [0, 0, 1]
    # Where it is not asked for, a part is paired by itself, by its own generator.
    alone = MinibatchOT(across).pair(part(33, 64, 0), generator_for(3)).noise
    assert torch.equal(alone, MinibatchOT(across).pair(Batch(rows[33:], data[33:], label[33:]), generator_for(3)).noise)
    assert reads == [0, 0, 1]


def test_pairing_across_classes_gives_each_class_noise_of_its_own():
    data, label = gaussian(6400)
    data = data + 4 * label.reshape(-1, 1, 1, 1)
    across = pairs_of(MinibatchOT(across_classes=True), data, label, torch.arange(6400), 64)
    within = pairs_of(MinibatchOT(), data, label, torch.arange(6400), 64)
    assert min(normality(across[1])) > ALPHA / 5
    assert min(normality(across[1][label == 0])) < 1e-20
    assert min(normality(within[1][label == 0])) > ALPHA / 5


def test_transport_shortens_with_the_reach_of_the_assignment():
    data, label = gaussian(60)
    potentials = fit_potentials(data, label, steps=500, batch=128, seed=0).potentials
    rows = torch.randint(60, (6400,), generator=generator_for(2))
    cost = {}
    for name, coupling in {
        "independent": Independent(),
        "minibatch": MinibatchOT(),
        "semidiscrete": SemidiscreteOT(data, label, potentials),
    }.items():
        x, z, _ = pairs_of(coupling, data, label, rows, 64)
        cost[name] = (x - z).square().flatten(1).sum(1)
    # Means differ by some 0.1 to 1; their standard errors are about 0.03.
    assert cost["minibatch"].mean() < cost["independent"].mean() - 0.5
    assert cost["semidiscrete"].mean() < cost["minibatch"].mean() - 0.05


LINE = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64)


def line_potentials():
    """Potentials of LINE: cells meet at quantiles q, where x^2/2 - g - q x are equal."""
    q = torch.special.ndtri(torch.arange(1, 5, dtype=torch.float64) / 5)
    steps = LINE.square().diff() / 2 - q * LINE.diff()
    g = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    return g - g.mean()


def line_masses(g):
    """Masses of the cells of LINE, exactly."""
    q = (LINE.square().diff() / 2 - g.diff()) / LINE.diff()
    assert (q.diff() > 0).all()
    return torch.special.ndtr(torch.cat([q.new_tensor([-20.0]), q, q.new_tensor([20.0])])).diff()


def test_fitted_potentials_are_those_known_on_a_line():
    fitted = fit_potentials(LINE.reshape(5, 1, 1, 1), None, steps=4000, batch=256, seed=0)
    # The averaged draws, half a million, fix a mass of 0.2 to 6e-4; potentials are some 10 times
    # as uncertain.
    torch.testing.assert_close(fitted.potentials, line_potentials(), rtol=0, atol=0.02)
    assert (line_masses(fitted.potentials) - 0.2).abs().max() < 0.005
    assert fitted.marginal_error < 3 * fitted.sampling_error


def test_cells_of_the_known_potentials_are_the_quantile_intervals():
    data = LINE.reshape(5, 1, 1, 1)
    coupling = SemidiscreteOT(data, None, line_potentials())
    x, z, _ = pairs_of(coupling, data, None, torch.zeros(5000, dtype=torch.long), 100)
    expected = LINE[(torch.special.ndtr(z.flatten()) * 5).long()]
    assert torch.equal(x.flatten(), expected)


def test_the_marginal_error_is_the_total_variation_of_the_cells():
    # One step of no size leaves g = 0, whose cells are known.
    fitted = fit_potentials(LINE.reshape(5, 1, 1, 1), None, steps=1, batch=100_000, lr=1e-12, seed=0)
    expected = (line_masses(torch.zeros(5, dtype=torch.float64)) - 0.2).abs().sum() / 2
    assert fitted.marginal_error == pytest.approx(expected.item(), abs=5 * fitted.sampling_error)
    assert expected > 20 * fitted.sampling_error


def test_potentials_are_fitted_class_by_class_to_a_uniform_marginal():
    data, label = gaussian(60)
    fitted = fit_potentials(data, label, steps=3000, batch=128, seed=0)
    for c in (0, 1):
        assert fitted.potentials[label == c].mean().abs() < 1e-5
    coupling = SemidiscreteOT(data, label, fitted.potentials)
    rows = torch.arange(60).repeat(1000)
    x, _, labels = pairs_of(coupling, data, label, rows, 6000)
    index = identify(x, data)
    assert torch.equal(labels, label[rows])
    # 60,000 draws deviate by 0.013 by chance, g = 0 by 0.3.
    visits = torch.bincount(index, minlength=60) / 60_000
    assert (visits - 1 / 60).abs().sum() / 2 < 0.03
    assert fitted.marginal_error < 0.03


def test_across_classes_a_pair_has_the_label_of_the_chosen_image():
    data, label = orbits()
    coupling = SemidiscreteOT(data, label, torch.zeros(24), across_classes=True)
    rows = torch.zeros(200, dtype=torch.long)
    x, z, labels = pairs_of(coupling, data, label, rows, 50)
    index = identify(x, data)
    assert torch.equal(labels, label[index])
    distance = (z[:, None] - data).square().flatten(2).sum(2)
    assert torch.equal(distance.argmin(1), index)
    assert len(labels.unique()) == 2


def test_semidiscrete_pairing_names_what_does_not_fit():
    data, label = orbits()
    with pytest.raises(ValueError, match=r"potentials have shape \(3,\), expected \(24,\)"):
        SemidiscreteOT(data, label, torch.zeros(3))
    zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match="with labels, the coupling was made without"):
        SemidiscreteOT(data, None, torch.zeros(24)).pair(Batch(zero, data[:1], zero), generator_for(0))
    alone = SemidiscreteOT(data[label == 0], zero.expand(8), torch.zeros(8))
    with pytest.raises(ValueError, match="class 1"):
        alone.pair(Batch(zero, data[:1], one), generator_for(0))


@pytest.mark.parametrize("sizes", [[10], [3, 1, 6]], ids=["one shard", "three shards"])
def test_stored_draws_are_of_the_right_image_and_equally_often_chosen(sizes):
    noise = torch.arange(40, dtype=torch.float16).reshape(10, 4, 1, 1, 1).expand(-1, -1, 1, 2, 2)
    data = torch.zeros(10, 1, 2, 2)
    rows = torch.randint(10, (8000,), generator=generator_for(0))
    _, z, _ = pairs_of(TeacherDraws(Rows.of(noise.split(sizes)), sigma=0.5), data, None, rows, 100)
    assert (z == z[:, :, :1, :1]).all()
    number = (z[:, 0, 0, 0] * 0.5).long()
    assert torch.equal(number // 4, rows)
    assert stats.chisquare(torch.bincount(number % 4)).pvalue > ALPHA
    same = pairs_of(TeacherDraws(Rows.of([noise / 0.5])), data, None, rows, 100)
    assert torch.equal(same[1], z)


def test_stored_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(N, K, C, H, W\)"):
        TeacherDraws(Rows.of([np.zeros((10, 1, 2, 2))]))
    batch = Batch(torch.arange(2), torch.zeros(2, 1, 2, 2), None)
    with pytest.raises(ValueError, match=r"\(1, 3, 3\)"):
        TeacherDraws(Rows.of([np.zeros((10, 4, 1, 3, 3))])).pair(batch, generator_for(0))


def test_the_teacher_sees_data_plus_fresh_noise_of_the_stated_size():
    data, label = gaussian(4000)
    teacher = Affine(torch.full((1, 2, 2), 0.7), torch.full((1, 2, 2), -1.1))
    online = TeacherOnline(teacher, 0.2, sigma=1.5)
    x, z, _ = pairs_of(online, data, label, torch.arange(4000), 500)
    z = z * 1.5
    draws = encode_draws(teacher, data, label, noise_std=0.2, draws=2, seed=0)
    for noise in (z, draws[:, 0], draws[:, 1]):
        eps = (teacher.decode(noise) - data) / 0.2
        assert torch.equal(x, data)
        assert min(normality(eps)) > ALPHA / 15
        assert abs(np.corrcoef(eps.flatten(), data.flatten())[0, 1]) < 4 / 16_000**0.5


class Labelled(Affine):
    """An affine bijection that shifts by the label."""

    def encode(self, x, label=None, dropped=None):
        z, log_det = super().encode(x)
        return z if label is None else z + label.reshape(-1, 1, 1, 1), log_det


def test_draws_depend_on_seed_and_row_and_not_on_the_batch():
    data, label = gaussian(9)
    teacher = Labelled(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))

    def draws(seed, *sizes):
        first, parts = 0, []
        for size in sizes:
            rows = slice(first, first + size)
            keys = {"noise_std": 0.3, "draws": 4, "seed": seed, "first": first}
            parts.append(encode_draws(teacher, data[rows], label[rows], **keys))
            first += size
        return torch.cat(parts)

    whole = draws(0, 9)
    assert whole.shape == (9, 4, 1, 2, 2)
    assert torch.equal(whole, draws(0, 1, 5, 3))
    eps = (whole - label.reshape(9, 1, 1, 1, 1) - data[:, None]) / 0.3
    assert len(eps.flatten().round(decimals=4).unique()) > 0.95 * eps.numel()
    assert not torch.isclose(whole, draws(1, 9)).any()


def test_the_teacher_gets_labels_unless_it_is_unconditional():
    data, _ = gaussian(4)
    label = torch.tensor([0, 10, 20, 30])
    teacher = Labelled(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    batch = Batch(torch.arange(4), data, label)
    given, without = (
        TeacherOnline(teacher, 0.2, 1.0, conditional).pair(batch, generator_for(0)).noise
        for conditional in (True, False)
    )
    torch.testing.assert_close(given - without, label.reshape(-1, 1, 1, 1).expand(4, 1, 2, 2) * 1.0)
