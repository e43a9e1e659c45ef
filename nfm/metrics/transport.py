"""How straight the sampled paths are."""

import torch
from torch import Tensor

from nfm.solve.solvers import Euler, Velocity, grid


@torch.no_grad()
def trajectory(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """Follows paths with Euler and keeps every point.

    Arguments:
        velocity: The velocity field with labels bound.
        x: Starting points, with shape (B, *event).
        times: Grid of times, with shape (N + 1,).

    Returns:
        The points at all times, with shape (N + 1, B, *event).
    """
    euler, points = Euler(), [x]
    for pair in times.unfold(0, 2, 1):
        points.append(euler.solve(velocity, points[-1], pair).x)
    return torch.stack(points)


@torch.no_grad()
def curvature(velocity: Velocity, noise: Tensor, *, steps: int = 128) -> float:
    r"""Measures by how much the velocity along a path differs from the path's chord; 0 is straight.

    .. math:: \kappa = \frac{\mathbb{E}\, \overline{\lVert v(x_t, t) - (z - \hat{x}) \rVert^2}}
                            {\mathbb{E}\, \lVert z - \hat{x} \rVert^2}

    The bar is the mean over uniform Euler steps from z to the sample x-hat. As the chord z - x-hat
    is the mean of the velocities, the numerator is the mean of their squares less the square of
    their mean: no path is kept.

    References:
        The Coupling Within (Berthelot et al., 2026). https://arxiv.org/abs/2603.09014

    Arguments:
        velocity: The velocity field with labels bound.
        noise: Starting points z, with shape (B, *event).
        steps: Euler steps.
    """
    x, total = noise, torch.zeros_like(noise, dtype=torch.float64)
    squares = total.new_zeros(())
    for t in grid("uniform", steps)[:-1]:
        v = velocity(x, t.to(x).expand(len(x)))
        x = x - v / steps
        # The difference of the two squares is small: float64.
        total += v.double()
        squares += v.double().square().mean()
    chord = (total / steps).square().mean()
    return ((squares / steps - chord).clamp(min=0) / chord).item()
