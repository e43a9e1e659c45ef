"""Curvature and trajectories of fields whose paths are known."""

import pytest
import torch

from nfm.metrics.transport import curvature, trajectory
from nfm.solve.solvers import Euler, grid


def normal(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_straight_paths_have_no_curvature():
    direction = normal(5, 1, 2, 2)
    assert curvature(lambda x, t: direction, 3 * direction) < 1e-14


def test_a_field_that_is_straight_along_each_path_has_no_curvature():
    # x_t = (1 - t) mu + t z has the velocity (x_t - mu) / t.
    mu = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert curvature(lambda x, t: (x - mu) / t[:, None], normal(50, 2)) < 1e-14


@pytest.mark.parametrize("steps", [2, 16, 128])
def test_a_velocity_proportional_to_time_has_its_known_curvature(steps):
    # On t = 1/N, ..., 1 the variance of t over its squared mean.
    expected = (steps - 1) / (3 * (steps + 1))
    direction = normal(5, 3)
    kappa = curvature(lambda x, t: t[:, None] * direction, normal(5, 3) + 1, steps=steps)
    assert kappa == pytest.approx(expected, rel=1e-12)


def test_exponential_decay_has_its_known_curvature():
    # v = x makes x_k = r^k z, so that only geometric series are needed.
    steps = 32
    r = 1 - 1 / steps
    mean = (1 - r**steps) / (steps * (1 - r))
    square = (1 - r ** (2 * steps)) / (steps * (1 - r**2))
    kappa = curvature(lambda x, t: x, normal(20, 2), steps=steps)
    assert kappa == pytest.approx(square / mean**2 - 1, rel=1e-10)


def test_curvature_is_the_definition_on_a_field_of_time_and_place():
    def velocity(x, t):
        return torch.sin(3 * x) + t[:, None] * x.flip(1)

    noise, steps = normal(40, 2), 64
    points = trajectory(velocity, noise, grid("uniform", steps))
    chord = noise - points[-1]
    times = grid("uniform", steps)[:-1]
    deviations = [
        (velocity(x, t.expand(40)) - chord).square().sum(1).mean() for x, t in zip(points[:-1], times, strict=True)
    ]
    expected = torch.stack(deviations).mean() / chord.square().sum(1).mean()
    assert curvature(velocity, noise, steps=steps) == pytest.approx(expected.item(), rel=1e-10)


def test_curvature_in_float32_is_that_in_float64():
    direction = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def velocity(x, t):
        return direction.to(x) * (1 + 0.01 * t[:, None])

    values = [curvature(velocity, normal(30, 2).to(d)) for d in (torch.float32, torch.float64)]
    # float32 velocities are rounded by 6e-8, deviations are 3e-3 of them.
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_trajectories_pass_through_the_known_points():
    times = grid("t2", 8)
    noise, direction = normal(4, 1, 2, 3), normal(4, 1, 2, 3) + 1
    points = trajectory(lambda x, t: direction, noise, times)
    expected = noise + (times - 1).reshape(-1, 1, 1, 1, 1) * direction
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-13)


def test_trajectories_end_where_sampling_ends():
    noise = normal(4, 2)
    points = trajectory(lambda x, t: x * t[:, None], noise, grid("t2", 5))
    end = Euler().solve(lambda x, t: x * t[:, None], noise, grid("t2", 5)).x
    assert points.shape == (6, 4, 2)
    assert torch.equal(points[0], noise)
    assert torch.equal(points[-1], end)
