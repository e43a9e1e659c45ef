"""An update of several GPUs by a simulation of events: processes of uneven speed, a queue of buckets, shared links.

It shares with the formula of `benchmarks.cluster` what a single pass, bucket or share takes, and nothing of how these
overlap: that follows from who waits for whom.
"""

import heapq
import statistics
from collections import deque
from collections.abc import Callable

import numpy as np

from benchmarks.cluster import Cluster, Job, all_reduce, buckets, optimizer_seconds, share_seconds

WARM_UP = 4  # updates in which queues fill


class Clock:
    """Calls what is due, in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + seconds, self._count, call))

    def run(self) -> None:
        while self._due:
            self.now, _, call = heapq.heappop(self._due)
            call()


class Server:
    """Serves requests one after another, in the order in which they come: a link, or the averaging of buckets."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._waiting, self._busy = clock, deque[tuple[float, Callable[[], None]]](), False

    def ask(self, seconds: float, done: Callable[[], None]) -> None:
        self._waiting.append((seconds, done))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            seconds, done = self._waiting.popleft()
            self._clock.after(seconds, lambda: self._end(done))

    def _end(self, done: Callable[[], None]) -> None:
        done()
        self._next()


class Training:
    """Some updates of a job by several processes.

    Arguments:
        job: What an update asks for.
        gpus: Processes.
        cluster: Gives links, prefetching and jitter: the standard deviation of the log of a process's time.
        seed: Of the jitter.
        updates: To simulate.
    """

    def __init__(self, job: Job, gpus: int, cluster: Cluster, seed: int, updates: int) -> None:
        self._gpus, self._updates, self._clock = gpus, updates, Clock()
        images = job.passes(gpus)
        encode = job.encode.seconds if job.encode else lambda _: 0.0
        last = job.train.seconds(images[-1])
        self._backward = last * (1 - job.forward)
        self._before = sum(job.train.seconds(n) + encode(n) for n in images) - self._backward
        self._optimizer = optimizer_seconds(job.weight_bytes, cluster)
        self._buckets = buckets(job.gradients, cluster.bucket) if gpus > 1 else []
        self._averaging = [all_reduce(bucket.bytes, gpus, cluster) for bucket in self._buckets]
        self._reading = share_seconds(job, gpus, cluster)
        self._ahead = cluster.prefetch
        # The mean of a log-normal variable with these parameters is 1.
        normal = np.random.default_rng(seed).standard_normal((updates, gpus))
        self._slowness = np.exp(cluster.jitter * normal - cluster.jitter**2 / 2)
        links = [Server(self._clock) for _ in range(0, gpus, cluster.machine)]
        self._links = [links[rank // cluster.machine] for rank in range(gpus)]
        self._engine = Server(self._clock)
        self._asked, self._loaded, self._begun = [0] * gpus, [0] * gpus, [0] * gpus
        self._idle = [True] * gpus  # ready for the next update
        self._ready = [0] * len(self._buckets)
        self.ends: list[float] = []

    def run(self) -> list[float]:
        """Returns when each update was over, in seconds."""
        for rank in range(self._gpus):
            self._read_ahead(rank)
            self._begin(rank)
        self._clock.run()
        return self.ends

    def _read_ahead(self, rank: int) -> None:
        """Asks for shares until as many are read or being read as may be, the one that is waited for among them."""
        allowed = self._begun[rank] + max(self._ahead, int(self._idle[rank]))
        while self._asked[rank] < min(allowed, self._updates):
            self._asked[rank] += 1
            self._links[rank].ask(self._reading, lambda: self._read(rank))

    def _read(self, rank: int) -> None:
        self._loaded[rank] += 1
        self._begin(rank)

    def _begin(self, rank: int) -> None:
        update = self._begun[rank]
        if not self._idle[rank] or update == self._updates or self._loaded[rank] == update:
            return
        self._idle[rank] = False
        self._begun[rank] += 1
        self._read_ahead(rank)
        slowness = float(self._slowness[update, rank])
        self._clock.after(slowness * self._before, lambda: self._go_back(rank, slowness, 0))

    def _go_back(self, rank: int, slowness: float, bucket: int) -> None:
        """Goes on with a backward pass up to where a bucket is full."""
        if not self._buckets:
            self._clock.after(slowness * self._backward, self._update_weights)
        elif bucket < len(self._buckets):
            done = self._buckets[bucket].done - (self._buckets[bucket - 1].done if bucket else 0.0)
            self._clock.after(slowness * self._backward * done, lambda: self._fill(rank, slowness, bucket))

    def _fill(self, rank: int, slowness: float, bucket: int) -> None:
        self._ready[bucket] += 1
        if self._ready[bucket] == self._gpus:
            self._ready[bucket] = 0
            last = bucket == len(self._buckets) - 1
            self._engine.ask(self._averaging[bucket], self._update_weights if last else lambda: None)
        self._go_back(rank, slowness, bucket + 1)

    def _update_weights(self) -> None:
        self._clock.after(self._optimizer, self._end)

    def _end(self) -> None:
        self.ends.append(self._clock.now)
        for rank in range(self._gpus):
            self._idle[rank] = True
            self._read_ahead(rank)
            self._begin(rank)


def update_seconds(job: Job, gpus: int, cluster: Cluster, *, seed: int = 0, updates: int = 30) -> float:
    """Returns the mean time of an update once queues have filled."""
    ends = Training(job, gpus, cluster, seed, WARM_UP + updates).run()
    return statistics.fmean(after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False))
