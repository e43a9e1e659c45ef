"""Solvers have the order and cost that they state; a sample depends on its own seed alone."""

import pytest
import torch

from nfm.errors import InputError
from nfm.solve.sample import initial_noise, sample
from nfm.solve.solvers import Dopri5, Euler, Heun, Midpoint, grid, steps_for

FIXED = {"euler": Euler(), "heun": Heun(), "midpoint": Midpoint()}
# Evaluations in N steps down to t = 0.
COST = {"euler": lambda n: n, "heun": lambda n: 2 * n - 1, "midpoint": lambda n: 2 * n}
SOLVERS = FIXED | {"dopri5": Dopri5()}


def nonlinear(x, t):
    """dx/dt = t x^2, of which 1/x + t^2/2 is a constant."""
    return t.reshape(-1, 1) * x**2


def exact(start):
    """Solution at t = 0 of `nonlinear` from x = start at t = 1."""
    return 1 / (1 / start + 0.5)


START = torch.tensor([[1.0, -0.5], [0.3, 1.5]], dtype=torch.float64)


class Recorder:
    """A velocity that keeps the times it is asked for."""

    def __init__(self):
        self.times = []

    def __call__(self, x, t):
        assert t.shape == (len(x),)
        assert t.dtype == x.dtype
        assert (t == t[0]).all()
        self.times.append(t[0].item())
        return torch.ones_like(x)


@pytest.mark.parametrize("kind", ["uniform", "t2"])
@pytest.mark.parametrize("name", FIXED)
def test_error_shrinks_with_the_stated_order(name, kind):
    solver, errors = FIXED[name], []
    for steps in (128, 256):
        end = solver.solve(nonlinear, START, grid(kind, steps)).x
        errors.append((end - exact(START)).abs().max())
    assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(solver.order, abs=0.1)


def test_dopri5_is_as_exact_as_its_tolerance_and_ignores_the_inside_of_the_grid():
    for tolerance in (1e-4, 1e-7, 1e-10):
        solver = Dopri5(rtol=tolerance, atol=tolerance)
        coarse, fine = (solver.solve(nonlinear, START, grid("t2", n)) for n in (1, 9))
        # A step of 6 evaluations errs by atol + rtol |x| at most, in the mean over 4 numbers; later
        # steps shrink errors.
        bound = coarse.nfe / 6 * (1 + START.abs().max()) * tolerance * 4**0.5
        assert (coarse.x - exact(START)).abs().max() < bound
        assert torch.equal(coarse.x, fine.x)
        assert coarse.nfe == fine.nfe


def test_a_tighter_tolerance_costs_more_evaluations():
    costs = [Dopri5(tol, tol).solve(nonlinear, START, grid("t2", 1)).nfe for tol in (1e-3, 1e-10)]
    assert costs[0] < costs[1]


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
@pytest.mark.parametrize("name", FIXED)
def test_nfe_is_the_number_of_calls_and_what_was_planned(name, steps):
    velocity = Recorder()
    solution = FIXED[name].solve(velocity, torch.zeros(3, 2), grid("t2", steps))
    assert solution.nfe == len(velocity.times) == COST[name](steps)
    assert steps_for(FIXED[name], solution.nfe) == steps


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_carries_a_constant_velocity_exactly(name):
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = SOLVERS[name].solve(Recorder(), x, grid("t2", 4))
    torch.testing.assert_close(solution.x, x - 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FIXED)
def test_no_velocity_is_asked_for_at_the_data_where_no_student_was_trained(name):
    velocity = Recorder()
    FIXED[name].solve(velocity, torch.zeros(1, 1), grid("t2", 5))
    assert velocity.times[0] == 1
    assert min(velocity.times) > 0


def test_the_last_step_of_heun_is_an_euler_step_and_only_that_to_zero():
    one = grid("t2", 1)
    euler, heun = (solver.solve(nonlinear, START, one) for solver in (Euler(), Heun()))
    assert torch.equal(euler.x, heun.x)
    assert heun.nfe == 1
    inside = Heun().solve(nonlinear, START, torch.tensor([1.0, 0.5], dtype=torch.float64))
    trapezium = nonlinear(START, torch.ones(2))
    ahead = START - trapezium / 2
    trapezium = (trapezium + nonlinear(ahead, torch.full((2,), 0.5))) / 2
    torch.testing.assert_close(inside.x, START - trapezium / 2, rtol=1e-14, atol=0)
    assert inside.nfe == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLVERS)
def test_solutions_have_the_dtype_of_the_noise(name, dtype):
    solution = SOLVERS[name].solve(nonlinear, START.to(dtype), grid("t2", 3))
    assert solution.x.dtype == dtype


@pytest.mark.parametrize(
    ("name", "nfe", "wanted"),
    [
        ("euler", 0, "1, 2, 3"),
        ("heun", 6, "1, 3, 5"),
        ("heun", -1, "1, 3, 5"),
        ("midpoint", 5, "2, 4, 6"),
        ("midpoint", 0, "2, 4, 6"),
        ("dopri5", 10, "euler, heun or midpoint"),
    ],
)
def test_an_nfe_that_no_grid_costs_is_refused_with_the_way_out(name, nfe, wanted):
    with pytest.raises(InputError, match=wanted) as caught:
        steps_for(SOLVERS[name], nfe)
    assert str(nfe) in str(caught.value)


def test_grids_run_from_noise_to_data():
    assert grid("uniform", 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert grid("t2", 4).tolist() == [1, 0.5625, 0.25, 0.0625, 0]
    with pytest.raises(ValueError, match="'cosine'"):
        grid("cosine", 4)
    with pytest.raises(ValueError, match="steps is 0"):
        grid("t2", 0)


def test_noise_of_a_sample_depends_on_seed_and_number_alone():
    whole = initial_noise(7, (1, 2, 2), seed=3)
    parts = [initial_noise(n, (1, 2, 2), seed=3, first=k) for k, n in ((0, 2), (2, 4), (6, 1))]
    assert torch.equal(whole, torch.cat(parts))
    assert len(whole.flatten().unique()) == whole.numel()
    assert not torch.isin(initial_noise(7, (1, 2, 2), seed=4), whole).any()


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_do_not_depend_on_the_batch_and_keep_their_labels(name, batch):
    noise, label = initial_noise(7, (2,), seed=0).double(), torch.arange(7)
    # An adaptive method's steps depend on the batch; its end is interpolated, so that errors are
    # some thousand tolerances. Labels in the wrong rows would differ by 1.
    solver, atol = (Dopri5(1e-9, 1e-9), 1e-5) if name == "dopri5" else (FIXED[name], 1e-14)

    def velocity_for(label):
        return lambda x, t: x * t[:, None] + label[:, None]

    whole, parts = (sample(velocity_for, noise, label, solver, grid("t2", 4), size) for size in (7, batch))
    torch.testing.assert_close(whole.x, parts.x, rtol=0, atol=atol)
    if name in COST:
        assert whole.nfe == parts.nfe == COST[name](4)


def test_sampling_without_labels_binds_none():
    seen = []

    def velocity_for(label):
        seen.append(label)
        return lambda x, t: -x

    sample(velocity_for, torch.ones(5, 1), None, Euler(), grid("t2", 2), 2)
    assert seen == [None, None, None]
