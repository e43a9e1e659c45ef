"""Solvers of dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nfm.errors import InputError

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """Where a trajectory ends, and what it cost.

    Attributes:
        x: Points at the last time, with shape (B, *event).
        nfe: Evaluations of the velocity, counted as they were made.
    """

    x: Tensor
    nfe: int


class Solver(ABC):
    """An explicit one-step method.

    Attributes:
        order: Global order: the error shrinks with the step size to this power.
        nfe_per_step: Evaluations of the velocity in one step; None if they depend on the velocity.
        nfe_saved: Evaluations that the step to t = 0 does without.
    """

    order: int
    nfe_per_step: int | None
    nfe_saved = 0

    @abstractmethod
    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Advances x, with shape (B, *event), from time t to time s, scalars."""

    def solve(self, velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
        """Integrates over a grid of times.

        Arguments:
            velocity: The velocity field with labels bound; it gets times with shape (B,), in the
                dtype of x.
            x: Points at the first time, with shape (B, *event).
            times: The grid, with shape (N + 1,), in float64 on the CPU as `grid` gives it.
        """
        counted = _Counted(velocity)
        for t, s in pairwise(times):
            x = self.step(counted, x, t, s)
        return Solution(x, counted.calls)


class Euler(Solver):
    """Explicit Euler."""

    order = 1
    nfe_per_step = 1

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x + (s - t) * velocity(x, t)


class Heun(Solver):
    """Heun's method; a step that ends at t = 0 is an Euler step, so that NFE = 2N - 1.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022).
        https://arxiv.org/abs/2206.00364
    """

    order = 2
    nfe_per_step = 2
    nfe_saved = 1

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        v = velocity(x, t)
        ahead = x + (s - t) * v
        return ahead if s == 0 else x + (s - t) * (v + velocity(ahead, s)) / 2


class Midpoint(Solver):
    """The explicit midpoint method."""

    order = 2
    nfe_per_step = 2

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h = s - t
        return x + h * velocity(x + h / 2 * velocity(x, t), t + h / 2)


class Dopri5(Solver):
    """Dormand and Prince's adaptive method, by torchdiffeq.

    It chooses its own steps between the first and the last time, whatever lies between them, from
    the errors of the whole batch: a sample depends on the others within the tolerances.

    References:
        A family of embedded Runge-Kutta formulae (Dormand & Prince, 1980).
        https://doi.org/10.1016/0771-050X(80)90013-3

    Arguments:
        rtol: Relative tolerance.
        atol: Absolute tolerance, on the scale of x.
    """

    order = 5
    nfe_per_step = None

    def __init__(self, rtol: float = 1.0e-5, atol: float = 1.0e-5) -> None:
        self.rtol, self.atol = rtol, atol

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        from torchdiffeq import odeint

        def field(time: Tensor, point: Tensor) -> Tensor:
            return velocity(point, time)

        ends = torch.stack([t, s]).to(x.device)
        path = odeint(field, x, ends, rtol=self.rtol, atol=self.atol, method="dopri5")
        assert isinstance(path, Tensor)  # a tuple comes out only where one goes in
        return path[-1]

    def solve(self, velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
        return super().solve(velocity, x, times[[0, -1]])


def steps_for(solver: Solver, nfe: int) -> int:
    """Returns the number of steps, the last to t = 0, that costs exactly `nfe` evaluations.

    Raises:
        InputError: No number of steps does.
    """
    name = type(solver).__name__.lower()
    if solver.nfe_per_step is None:
        raise InputError(f"{name} spends what its tolerances take, not nfe = {nfe}; take euler, heun or midpoint")
    steps, rest = divmod(nfe + solver.nfe_saved, solver.nfe_per_step)
    if nfe < 1 or rest:
        first = solver.nfe_per_step - solver.nfe_saved
        known = ", ".join(str(first + k * solver.nfe_per_step) for k in range(3))
        raise InputError(f"nfe is {nfe}, expected one of {known} and so on with {name}")
    return steps


def grid(kind: str, steps: int) -> Tensor:
    r"""Returns the times of a trajectory, from 1 to 0, with shape (steps + 1,).

    .. math:: t_i = (1 - i/N)^2 \;(\text{t2}), \qquad t_i = 1 - i/N \;(\text{uniform})

    Arguments:
        kind: "t2" or "uniform".
        steps: N, at least 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    uniform = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    match kind:
        case "uniform":
            return uniform
        case "t2":
            return uniform**2
    raise ValueError(f"kind is {kind!r}, expected 't2' or 'uniform'")


class _Counted:
    """Calls a velocity with times of shape (B,), and counts."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.calls = velocity, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.velocity(x, t.to(x).expand(len(x)))
