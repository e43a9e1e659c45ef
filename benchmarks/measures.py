"""ot, semidiscrete, fidelity: what is computed once a batch or once an evaluation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baseline import measures
from benchmarks.peers import Peers
from benchmarks.table import Row
from benchmarks.timing import compare
from nfm.coupling.minibatch_ot import assign
from nfm.coupling.semidiscrete_ot import fit_potentials
from nfm.metrics.fidelity import frechet
from nfm.metrics.statistics import Statistics
from nfm.random import generator_for

WIDTH = 2048  # of Inception's features


def assignment(given: Peers, seconds: float) -> Iterator[Row]:
    for count, width in ((128, 64), (256, 64), (1024, 64), (128, 3072), (1024, 3072)):
        data, noise = (torch.randn(count, width, generator=generator_for(seed)) for seed in (0, 1))
        what = f"{count} x {width}"
        error = excess(data, noise, assign(data, noise), measures.assign(data, noise))

        def ours(data=data, noise=noise) -> Tensor:
            return assign(data, noise)

        plain = compare(ours, lambda data=data, noise=noise: measures.assign(data, noise), seconds)
        yield Row("ot", what, "baseline", plain, error=error)
        if "torchcfm" not in given:
            yield Row("ot", what, "torchcfm (POT)", None, 2.0)
            continue
        plan = given["torchcfm"].OTPlanSampler(method="exact")
        chosen = torch.from_numpy(plan.get_map(data, noise).argmax(1))
        peer = compare(ours, lambda data=data, noise=noise, plan=plan: plan.get_map(data, noise), seconds)
        yield Row("ot", what, "torchcfm (POT)", peer, 2.0, excess(data, noise, assign(data, noise), chosen))


def semidiscrete(_: Peers, seconds: float) -> Iterator[Row]:
    points = torch.randn(1000, 64, generator=generator_for(0)).reshape(-1, 1, 8, 8)
    ratio = compare(
        lambda: fit_potentials(points, None, steps=20, batch=256, seed=0),
        lambda: plain_potentials(points.flatten(1), 20, 256),
        seconds,
    )
    yield Row("semidiscrete", "1000 images x 64, 20 steps", "baseline", ratio)


def plain_potentials(points: Tensor, steps: int, batch: int) -> Tensor:
    """Ascends the semidual with all squared distances written out, then counts cells as often as the fit does."""
    generator, n = generator_for(0), len(points)
    g, total = torch.zeros(n), torch.zeros(n)
    for step in range(1, 2 * steps + 1):
        z = torch.randn(batch, points.shape[1], generator=generator)
        cells = (torch.cdist(z, points).square() / 2 - g).argmin(1)
        if step <= steps:
            g = g + step**-0.5 * (1 - n * torch.bincount(cells, minlength=n) / batch)
            total = total + g
    return total / steps


def fidelity(_: Peers, seconds: float) -> Iterator[Row]:
    real, fake = (gaussian(seed) for seed in (0, 1))
    ours, exact = frechet(real, fake), measures.frechet(real, fake)
    ratio = compare(lambda: frechet(real, fake), lambda: measures.frechet(real, fake), seconds, rounds=3)
    yield Row(
        "fidelity",
        f"{WIDTH} features",
        "eigvals of the product",
        ratio,
        2.0,
        abs(ours / exact - 1),
        "error is relative",
    )


def gaussian(seed: int) -> Statistics:
    """Returns the statistics of as many images as keep the covariance from being singular."""
    spread = torch.linspace(0.1, 2.0, WIDTH, dtype=torch.float64)
    rows = seed + spread * torch.randn(2 * WIDTH, WIDTH, generator=generator_for(seed), dtype=torch.float64)
    return Statistics(len(rows), rows.mean(0), rows.T.cov(), rows[:1])


def excess(data: Tensor, noise: Tensor, ours: Tensor, theirs: Tensor) -> float:
    """Returns by how much, relative, the cost of ours is above that of theirs."""
    mine, other = ((data.double() - noise.double()[order]).square().sum().item() for order in (ours, theirs))
    return max(0.0, mine / other - 1)
