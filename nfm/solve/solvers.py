"""Solvers of dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

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
        nfe_per_step: Evaluations of the velocity in one step.
    """

    order: int
    nfe_per_step: int

    @abstractmethod
    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Advances x, with shape (B, *event), from time t to time s, scalars."""

    def solve(self, velocity: Velocity, x: Tensor, times: Tensor) -> Solution:
        """Advances x, with shape (B, *event), over a grid of times, with shape (N + 1,)."""
        counted = _Counted(velocity)
        for t, s in zip(times[:-1], times[1:], strict=True):
            x = self.step(counted, x, t, s)
        return Solution(x, counted.calls)

    def steps_for(self, nfe: int) -> int:
        """Returns the number of steps that makes exactly `nfe` evaluations.

        Raises:
            InputError: No number of steps does.
        """
        return _divide(nfe, self.nfe_per_step, 0, type(self).__name__)


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

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        v = velocity(x, t)
        ahead = x + (s - t) * v
        return ahead if s == 0 else x + (s - t) * (v + velocity(ahead, s)) / 2

    def steps_for(self, nfe: int) -> int:
        return _divide(nfe, 2, 1, "Heun")


class Midpoint(Solver):
    """The explicit midpoint method."""

    order = 2
    nfe_per_step = 2

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h = s - t
        return x + h * velocity(x + h / 2 * velocity(x, t), t + h / 2)


class Dopri5(Solver):
    """Dormand and Prince's adaptive method of order 5, by torchdiffeq; NFE is what the tolerances take.

    Arguments:
        rtol: Relative tolerance.
        atol: Absolute tolerance, on the scale of x.
    """

    order = 5
    nfe_per_step = 6

    def __init__(self, rtol: float = 1.0e-5, atol: float = 1.0e-5) -> None:
        self.rtol, self.atol = rtol, atol

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        from torchdiffeq import odeint

        field = lambda time, point: velocity(point, time)  # noqa: E731
        path = odeint(field, x, torch.stack([t, s]), rtol=self.rtol, atol=self.atol)
        return path[-1]

    def steps_for(self, nfe: int) -> int:
        raise InputError(
            "dopri5 chooses its own NFE; ask for tolerances, or take euler, heun or midpoint"
        )


def grid(kind: str, steps: int) -> Tensor:
    r"""Returns the times of a trajectory, from 1 to 0, with shape (steps + 1,).

    .. math:: t_i = (1 - i/N)^2 \;(\text{t2}), \qquad t_i = 1 - i/N \;(\text{uniform})
    """
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


def _divide(nfe: int, per_step: int, saved: int, name: str) -> int:
    steps, rest = divmod(nfe + saved, per_step)
    if nfe < 1 or rest:
        kind = "a positive" if per_step == 1 else "an odd" if saved else "a positive even"
        raise InputError(f"nfe is {nfe}, expected {kind} number for {name}")
    return steps
