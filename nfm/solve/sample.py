"""Sampling: each sample has a seed of its own, so batches do not matter."""

from collections.abc import Callable

import torch
from torch import Tensor

from nfm.random import generator_for
from nfm.solve.solvers import Solution, Solver, Velocity


def initial_noise(count: int, shape: tuple[int, ...], seed: int, first: int = 0) -> Tensor:
    """Draws N(0, I) noise in which row i depends on the seed and i alone.

    Arguments:
        count: Number of samples.
        shape: Shape of one of them.
        seed: Seed of all of them.
        first: Index of the first, to draw a long list in parts.

    Returns:
        Noise, with shape (count, *shape), float32 on the CPU.
    """
    rows = range(first, first + count)
    return torch.stack([torch.randn(shape, generator=generator_for(seed, i)) for i in rows])


@torch.no_grad()
def sample(
    velocity_for: Callable[[Tensor | None], Velocity],
    noise: Tensor,
    label: Tensor | None,
    solver: Solver,
    times: Tensor,
    batch: int,
) -> Solution:
    """Integrates from noise to data, some samples at a time.

    Arguments:
        velocity_for: Binds labels to the velocity, see `nfm.student.velocity.guided`.
        noise: Starting points at t = 1, with shape (N, *event).
        label: Class labels, with shape (N,), or None.
        solver: The method.
        times: Grid of times from 1 to 0, with shape (N + 1,), see `nfm.solve.solvers.grid`.
        batch: Samples at a time; changes memory and speed only.

    Returns:
        The samples, with shape (N, *event), and the evaluations in one trajectory.
    """
    parts = noise.split(batch)
    labels = [None] * len(parts) if label is None else label.split(batch)
    ends = [solver.solve(velocity_for(c), z, times) for z, c in zip(parts, labels, strict=True)]
    return Solution(torch.cat([end.x for end in ends]), ends[0].nfe)
