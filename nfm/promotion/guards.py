"""What a challenger is refused for, however good its samples are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfm.config import Guards

ROWS = 1000  # of features whose distances are computed at once


@dataclass(frozen=True)
class Guard:
    """One guard beside what it found.

    Attributes:
        name: Of the guard.
        passed: Whether it lets the challenger pass.
        value: The number that it looked at; None where there is none.
        limit: What that may be at most; None where the guard is off.
        line: The finding in words.
    """

    name: str
    passed: bool
    value: float | None
    limit: float | None
    line: str


def nearness(samples: Tensor, held_out: Tensor, train: Tensor) -> float:
    r"""Returns how often a sample is nearer to the training images than a held-out image is.

    .. math:: P(d(s) < d(h)) + \tfrac12 P(d(s) = d(h)), \qquad d(x) = \min_j \lVert f(x) - f(x_j) \rVert

    over all pairs of a sample s and a held-out image h, with f the features and x_j the training images: the
    Mann-Whitney statistic. Samples of the same law as the held-out images have 0.5, copies of training images 1,
    and samples that are far from any image less than 0.5.

    References:
        A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan et al., 2020).
        https://arxiv.org/abs/2004.05675

    Arguments:
        samples: Features, with shape (N, F).
        held_out: The same of held-out images, with shape (M, F).
        train: The same of the images trained on, with shape (K, F).
    """
    ours, theirs = (_nearest(rows, train) for rows in (samples, held_out))
    ordered = theirs.sort().values
    above = len(ordered) - torch.searchsorted(ordered, ours, right=True)
    equal = len(ordered) - torch.searchsorted(ordered, ours) - above
    return float((above.double() + equal.double() / 2).mean() / len(ordered))


def check_guards(
    limits: Guards,
    *,
    evidence: Mapping[str, Any],
    before: Mapping[str, Any],
    broken: int,
    accuracy: tuple[float | None, float | None],
    near: float | None,
) -> list[Guard]:
    """Holds a challenger against every guard.

    Arguments:
        limits: The section `promote.guards`.
        evidence: Of the challenger, see `nfm.promotion.evidence`.
        before: The same of the champion, as far as it is known.
        broken: Samples of the challenger that are not finite.
        accuracy: Of the challenger's and of the champion's samples.
        near: From `nearness`, None where there were no samples to look at.
    """
    drop = limits.accuracy_drop
    return [
        Guard("finite", broken == 0, broken, 0, f"{broken} samples are not finite, expected none"),
        _card(limits, evidence),
        _drop("accuracy", "the samples' accuracy", *accuracy, drop),
        _drop(
            "features",
            "the classifier's accuracy on held-out images",
            evidence.get("accuracy"),
            before.get("accuracy"),
            drop,
        ),
        Guard(
            "memorisation",
            near is None or near <= limits.memorisation,
            near,
            limits.memorisation,
            f"{near or 0:.2f} of samples are nearer to the training images than held-out ones, "
            f"expected at most {limits.memorisation:g}",
        ),
        _seconds(limits, evidence),
    ]


def _card(limits: Guards, evidence: Mapping[str, Any]) -> Guard:
    card = evidence.get("card")
    if not limits.card or not evidence.get("has_card", True):
        return Guard("card", True, None, None, "the coupling's card is not asked for")
    if card is None:
        return Guard("card", False, None, None, "the coupling's card is not known here")
    return Guard(
        "card", bool(card["passed"]), card.get("value"), card.get("limit"), f"the coupling's card: {card['line']}"
    )


def _drop(name: str, what: str, now: float | None, before: float | None, limit: float) -> Guard:
    if now is None or before is None:
        return Guard(name, True, None, limit, f"{what} is not known of both")
    fall = before - now
    line = f"{what} falls from {before:.3f} to {now:.3f}, expected a fall of at most {limit:g}"
    return Guard(name, fall <= limit, fall, limit, line)


def _seconds(limits: Guards, evidence: Mapping[str, Any]) -> Guard:
    seconds = evidence.get("seconds")
    if limits.seconds is None:
        return Guard("seconds", True, seconds, None, "no budget of seconds is set")
    if seconds is None:
        return Guard("seconds", False, None, limits.seconds, "the seconds that it took are not known here")
    line = f"it took {seconds:.0f} s to make, expected at most {limits.seconds:g} s"
    return Guard("seconds", seconds <= limits.seconds, seconds, limits.seconds, line)


def _nearest(rows: Tensor, train: Tensor) -> Tensor:
    """Returns the distance of each row to the nearest training image, float64 with shape (N,)."""
    there = train.double()
    parts = [torch.cdist(part.double(), there).min(dim=1).values for part in rows.split(ROWS)]
    return torch.cat(parts)
