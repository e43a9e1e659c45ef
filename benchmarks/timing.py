"""Two variants timed by turns in one process, so that both meet the same machine."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the first of two variants is.

    Attributes:
        median: Ratio of the medians.
        best: Ratio of the shortest times.
        ours: Median seconds of the first.
        theirs: Median seconds of the second.
        rounds: How often each was timed.
    """

    median: float
    best: float
    ours: float
    theirs: float
    rounds: int

    @property
    def quoted(self) -> float:
        """The lower of both ratios."""
        return min(self.median, self.best)


def compare(ours: Work, theirs: Work, seconds: float, rounds: int = 5) -> Ratio:
    """Times two variants by turns, after a warm-up of each.

    Arguments:
        ours: Does the work once.
        theirs: Does the same work.
        seconds: That each of them is to take in all, at least; a round repeats work that is short.
        rounds: Times that each of them has its turn, at least.
    """
    repeats = [max(1, round(seconds / rounds / wall(work))) for work in (ours, theirs)]
    gc.collect()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        # Who comes first changes, as the first may leave a cache warm for the second.
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(clocked((ours, theirs)[which], repeats[which]))
    mine, other = times
    return Ratio(
        statistics.median(other) / statistics.median(mine),
        min(other) / min(mine),
        statistics.median(mine),
        statistics.median(other),
        rounds,
    )


def clocked(work: Work, repeats: int) -> float:
    """Returns the seconds of one repetition: of the processor, or of the GPU where there is one."""
    if torch.cuda.is_available():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    before = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - before) / repeats


def wall(work: Work) -> float:
    """Returns the seconds of the second of two runs; the processor's clock may tick too slowly for one."""
    work()
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-6)
