"""The one-sided paired test that a challenger has to pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """What the test found.

    Attributes:
        ratio: Geometric mean of challenger's over champion's FD.
        t: Student's t; infinite where all differences are equal.
        p: Chance of such a t or a lower one if the challenger were better by the margin and no more.
    """

    ratio: float
    t: float
    p: float


def differences(challenger: Sequence[Sequence[float]], champion: Sequence[Sequence[float]]) -> list[float]:
    r"""Returns for each evaluation the mean over NFEs of log FD of the challenger minus that of the champion.

    .. math:: d_s = \frac{1}{|N|} \sum_{n \in N} \log \frac{\mathrm{FD}^\text{challenger}_{s,n}}
        {\mathrm{FD}^\text{champion}_{s,n}}

    The logarithm makes NFEs count alike, whose distances differ by factors. Noise and labels of evaluation s are
    the same for both, so that what they have in common drops out.

    Arguments:
        challenger: FD by evaluation and NFE.
        champion: The same, in the same order.
    """
    if [len(row) for row in challenger] != [len(row) for row in champion]:
        raise ValueError(f"there are {len(challenger)} and {len(champion)} evaluations, expected pairs over equal NFEs")
    pairs = [zip(ours, theirs, strict=True) for ours, theirs in zip(challenger, champion, strict=True)]
    return [math.fsum(terms) / len(terms) for pair in pairs if (terms := [_log(a) - _log(b) for a, b in pair])]


def paired_test(d: Sequence[float], margin: float) -> Paired:
    r"""Tests whether FD is lower by more than a margin m, beyond what the noise of the samples explains.

    .. math:: H_0: \mathbb{E}\, d \ge \log(1 - m), \qquad
        t = \frac{\bar d - \log(1 - m)}{s_d / \sqrt{S}}, \qquad p = F_{S-1}(t)

    with F the distribution function of Student's t with S - 1 degrees of freedom: the paired t test over S
    evaluations, each with noise and labels of its own. Their spread is that of sampling; what another seed of the
    training would do is not in it, which is what the margin is for.

    References:
        The Probable Error of a Mean (Student, 1908). https://doi.org/10.1093/biomet/6.1.1

    Arguments:
        d: Differences from `differences`, at least 3. Minus infinity says that the champion cannot be measured,
            plus infinity that the challenger cannot.
        margin: m, from 0 to below 1.
    """
    if len(d) < 3:
        raise ValueError(f"there are {len(d)} evaluations, expected at least 3 to tell a spread")
    if not all(map(math.isfinite, d)):
        better = max(d) == -math.inf
        return Paired(0.0 if better else math.inf, -math.inf if better else math.inf, 0.0 if better else 1.0)
    from scipy.special import stdtr

    mean, wanted = math.fsum(d) / len(d), math.log1p(-margin)
    variance = math.fsum((value - mean) ** 2 for value in d) / (len(d) - 1)
    error = math.sqrt(variance / len(d))
    if error == 0:
        t = -math.inf if mean < wanted else math.inf
        return Paired(math.exp(mean), t, 0.0 if mean < wanted else 1.0)
    t = (mean - wanted) / error
    return Paired(math.exp(mean), t, float(stdtr(len(d) - 1, t)))


def _log(fd: float) -> float:
    # A distance of 0 is that of equal sets; rounding may leave it just below.
    return math.log(max(fd, 1e-12))
