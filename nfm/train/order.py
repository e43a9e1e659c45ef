"""The order of the data as a function of seed and step, so that resuming means setting the step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfm.random import generator_for


@dataclass(frozen=True)
class Windows:
    """An order in which few shards of the rows have to be at hand: a few shards are mixed, then the next few.

    Every epoch puts the shards into another order and divides them among windows, whose rows are permuted.

    Attributes:
        counts: Rows of each shard, in the order of the rows.
        width: Shards in a window, at most; the windows' numbers of shards differ by one at most.
    """

    counts: tuple[int, ...]
    width: int

    def shards(self, seed: int, epoch: int) -> list[list[int]]:
        """Returns the shards of each window of an epoch."""
        order = torch.randperm(len(self.counts), generator=generator_for(seed, epoch, 0)).numpy()
        return [part.tolist() for part in np.array_split(order, -(-len(order) // self.width))]

    def rows(self, seed: int, epoch: int) -> Tensor:
        """Returns all rows in the order of an epoch."""
        starts = np.cumsum((0, *self.counts)).tolist()
        generator = generator_for(seed, epoch, 1)
        parts = []
        for window in self.shards(seed, epoch):
            rows = torch.cat([torch.arange(starts[k], starts[k + 1]) for k in window])
            parts.append(rows[torch.randperm(len(rows), generator=generator)])
        return torch.cat(parts)

    def needed(self, batch: int, seed: int, step: int) -> list[int]:
        """Returns the shards of a batch's windows and of the next window, in the order of their use."""
        epoch, first = divmod(step * batch, sum(self.counts))
        needed: list[int] = []
        start = 0
        while True:
            for window in self.shards(seed, epoch):
                end = start + sum(self.counts[k] for k in window)
                if end > first:
                    needed += [k for k in window if k not in needed]
                if start >= first + batch:
                    return needed
                start = end
            epoch += 1


def batch_indices(count: int, batch: int, seed: int, step: int, windows: Windows | None = None) -> Tensor:
    """Returns the rows of one global batch.

    Every epoch is a permutation of all rows, fixed by the seed and the epoch's number; batches run
    on across its end.

    Arguments:
        count: Rows in the data set.
        batch: Rows per update.
        seed: Seed of the order.
        step: Number of the update, from 0.
        windows: How the rows of an epoch are mixed; None for all with all.

    Returns:
        Row numbers, with shape (batch,), on the CPU.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected a data set of 1 row or more")
    first, parts = step * batch, []
    while batch > 0:
        epoch, row = divmod(first, count)
        parts.append(_epoch(count, seed, epoch, windows)[row : row + batch])
        first, batch = first + len(parts[-1]), batch - len(parts[-1])
    return torch.cat(parts)


def pieces(batch: int, micro_batch: int | None, rank: int, processes: int) -> Iterator[slice]:
    """Yields one process's share of a global batch, in pieces of one forward pass each.

    The shares are contiguous, and their sizes differ by one at most.

    Arguments:
        batch: Rows per update.
        micro_batch: Largest number of rows in a piece; None for the whole share.
        rank: Number of the process, from 0.
        processes: Number of processes, at most `batch`.
    """
    start, stop = rank * batch // processes, (rank + 1) * batch // processes
    size = micro_batch or batch
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int, windows: Windows | None) -> Tensor:
    if windows is not None:
        return windows.rows(seed, epoch)
    return torch.randperm(count, generator=generator_for(seed, epoch))
