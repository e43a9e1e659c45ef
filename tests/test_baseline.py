"""The library equals the plain baseline of benchmarks/, in float64 to rounding and in float32 to stated errors."""

from itertools import permutations

import pytest
import torch

from benchmarks.baseline import measures, sit, tarflow
from nfm.coupling.minibatch_ot import assign
from nfm.metrics.fidelity import frechet
from nfm.metrics.statistics import Accumulator
from nfm.random import generator_for
from nfm.student.velocity import SiT
from nfm.teacher.tarflow import TarFlow

SHAPE = (3, 8, 8)
CLASSES = {"conditional": 4, "unconditional": None}


def stirred(make, dtype):
    """A network with weights away from the zeros that make an untrained one trivial."""
    generator = generator_for(0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make().to(dtype)
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(0.3 * noise / max(1, weight.shape[-1]) ** 0.5)
    return model


def teacher(classes, dtype=torch.float64):
    return stirred(lambda: TarFlow(SHAPE, (4, 2), 3, 2, 16, 8, classes), dtype)


def student(classes, dtype=torch.float64):
    return stirred(lambda: SiT(SHAPE, (4, 2), 2, 16, 8, classes), dtype)


def draw(seed, dtype=torch.float64, count=6):
    return torch.randn(count, *SHAPE, generator=generator_for(seed), dtype=dtype)


def labels(classes):
    return None if classes is None else torch.arange(6) % classes


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES.keys())
def test_a_teacher_encodes_and_decodes_as_the_baseline(classes):
    model, x, label = teacher(classes), draw(1), labels(classes)
    for given in (label, None):
        z, log_det = model.encode(x, given)
        expected, expected_det = tarflow.encode(model, x, given)
        torch.testing.assert_close(z, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(log_det, expected_det, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(model.decode(z, given), tarflow.decode(model, z, given), rtol=1e-9, atol=1e-9)


def test_in_float32_the_teacher_encodes_to_2e_5():
    model, x, label = teacher(4, torch.float32), draw(1, torch.float32), labels(4)
    z, _ = model.encode(x, label)
    exact, _ = tarflow.encode(model.double(), x.double(), label)
    assert exact.std() > 0.5
    assert (z - exact).abs().max() < 2e-5


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES.keys())
def test_a_students_velocity_is_the_baselines(classes):
    model, x, t = student(classes), draw(1), torch.linspace(0, 1, 6, dtype=torch.float64)
    for given in (labels(classes), None):
        torch.testing.assert_close(model(x, t, given), sit.velocity(model, x, t, given), rtol=1e-11, atol=1e-11)


def test_updates_of_a_student_are_the_baselines():
    ours, theirs = student(4), student(4)
    optimizer = torch.optim.AdamW(ours.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.1, fused=True)
    training = sit.Training(theirs, 1e-3, (0.9, 0.99), 0.1)
    t, label = torch.linspace(0.1, 0.9, 6, dtype=torch.float64), labels(4)
    for step in range(3):
        data, noise = draw(2 * step), draw(2 * step + 1)
        x_t = data + t[:, None, None, None] * (noise - data)
        loss = (ours(x_t, t, label) - (noise - data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.update(sit.loss(theirs, data, noise, t, label))
    # A gradient's rounding, 1e-15 of it, is divided by the gradient's size.
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


def test_the_assignment_is_the_best_of_all_permutations():
    data, noise = draw(1, count=6), draw(2, count=6)
    cost = measures.costs(data, noise)
    best = min(sum(cost[i, j].item() for i, j in enumerate(order)) for order in permutations(range(6)))
    for found in (assign(data, noise), measures.assign(data, noise)):
        assert cost[torch.arange(6), found].sum().item() == pytest.approx(best, rel=1e-12)


def test_a_large_assignment_costs_what_the_baselines_does():
    data, noise = (torch.randn(200, 64, generator=generator_for(seed)) for seed in (0, 1))
    cost, rows = measures.costs(data.double(), noise.double()), torch.arange(200)
    ours, theirs = (cost[rows, solve(data, noise)].sum() for solve in (assign, measures.assign))
    # Costs in float32, 6e-8 of 64-dimensional squared distances, may tell near ties apart wrongly.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("counts", [(300, 300), (20, 300), (300, 20), (20, 25)], ids=str)
def test_the_frechet_distance_is_the_baselines(counts, constant):
    """Also of fewer images than features."""

    def statistics(seed, scale, count):
        accumulator = Accumulator()
        features = scale * torch.randn(count, 32, generator=generator_for(seed), dtype=torch.float64)
        features[:, 5] *= 0 if constant else 1
        accumulator.add(features)
        return accumulator.statistics()

    real, fake = (statistics(seed, scale, n) for seed, scale, n in zip((0, 1), (1.0, 1.5), counts, strict=True))
    assert frechet(real, fake) == pytest.approx(measures.frechet(real, fake), rel=1e-6)
    assert frechet(real, fake) == pytest.approx(frechet(fake, real), rel=1e-6)


def test_the_frechet_distance_of_a_set_to_itself_is_zero():
    accumulator = Accumulator()
    accumulator.add(torch.randn(300, 32, generator=generator_for(0), dtype=torch.float64))
    assert abs(frechet(accumulator.statistics(), accumulator.statistics())) < 1e-9
