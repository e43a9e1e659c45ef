"""Which differences between two groups of seeds exceed the noise of seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

LEVEL = 0.05  # of the family of all NFEs of one row
NO_SPREAD = "one seed: no spread"


@dataclass(frozen=True)
class Difference:
    """Of two means.

    Attributes:
        value: Mean of ours minus mean of theirs.
        p: Two-sided p-value; None where a side has one seed, hence no spread.
        adjusted: The same after Holm's correction for the row.
    """

    value: float
    p: float | None
    adjusted: float | None

    @property
    def exceeds(self) -> bool | None:
        """Whether it exceeds the noise of seeds; None where that cannot be told."""
        return None if self.adjusted is None else self.adjusted < LEVEL

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.exceeds is None:
            return NO_SPREAD
        if not self.exceeds:
            return "within seed noise"
        return "better" if self.value < 0 else "worse"


def welch(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    r"""Returns the two-sided p-value of equal means, by Welch's t-test.

    .. math:: t = \frac{\bar a - \bar b}{\sqrt{s_a^2 / n_a + s_b^2 / n_b}}

    with the degrees of freedom of Welch and Satterthwaite. A seed trains its own teacher, coupling and student, so the
    values of a group are independent draws; the two groups are not taken as pairs, which loses a little power where
    they share seeds and claims nothing where they do not.

    References:
        The generalization of Student's problem when several different population variances are involved (Welch, 1947).

    Arguments:
        ours: One value a seed.
        theirs: Likewise.

    Returns:
        None where a side has fewer than two values.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    a, b = variance(ours) / len(ours), variance(theirs) / len(theirs)
    gap = abs(fmean(ours) - fmean(theirs))
    if a + b <= (1e-12 * max(map(abs, [*ours, *theirs, 1e-300]))) ** 2:  # equal up to rounding within each group
        return 1.0 if gap <= 1e-9 * max(map(abs, [*ours, *theirs])) else 0.0
    from scipy.stats import t

    freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return float(2 * t.sf(gap / math.sqrt(a + b), freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number, so that any false one among those below a level is that rare.

    References:
        A simple sequentially rejective multiple test procedure (Holm, 1979).
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def differences(ours: dict[int, Sequence[float]], theirs: dict[int, Sequence[float]]) -> dict[int, Difference]:
    """Returns the difference at every NFE that both have measured.

    The test is Welch's, two-sided; the NFEs of the row are one family, corrected by Holm at a level of 5 %.
    """
    shared = [nfe for nfe in ours if nfe in theirs]
    ps = {nfe: welch(ours[nfe], theirs[nfe]) for nfe in shared}
    known = {nfe: p for nfe, p in ps.items() if p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return {nfe: Difference(fmean(ours[nfe]) - fmean(theirs[nfe]), ps[nfe], adjusted.get(nfe)) for nfe in shared}
