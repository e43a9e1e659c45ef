"""How straight the sampled paths are."""

import torch
from torch import Tensor

from nfm.solve.solvers import Euler, Velocity, grid


@torch.no_grad()
def trajectory(velocity: Velocity, noise: Tensor, times: Tensor) -> Tensor:
    """Returns the points of Euler trajectories, with shape (N + 1, B, *event), noise first."""
    euler, points = Euler(), [noise]
    for pair in times.unfold(0, 2, 1):
        points.append(euler.solve(velocity, points[-1], pair).x)
    return torch.stack(points)


@torch.no_grad()
def curvature(velocity: Velocity, noise: Tensor, *, steps: int = 128) -> float:
    r"""Measures by how much the velocity along a path differs from the path's chord; 0 is straight.

    .. math:: \kappa = \frac{\mathbb{E}\, \overline{\lVert v(x_t, t) - (z - \hat{x}) \rVert^2}}
                            {\mathbb{E}\, \lVert z - \hat{x} \rVert^2}

    The mean is over uniform Euler steps from z to the sample.

    Arguments:
        velocity: The velocity field with labels bound.
        noise: Starting points z, with shape (B, *event).
        steps: Euler steps.
    """
    points = trajectory(velocity, noise, grid("uniform", steps).to(noise.device))
    chord = noise - points[-1]
    # An Euler step moves by the velocity times -1 / steps.
    velocities = (points[:-1] - points[1:]) * steps
    # Small differences of large sums: float64.
    deviation = (velocities - chord).double().square().mean()
    return (deviation / chord.double().square().mean()).item()
