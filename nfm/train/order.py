"""The order of the data as a function of seed and step, so that resuming means setting the step."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from nfm.random import generator_for


def batch_indices(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Returns the rows of one global batch.

    Every epoch is a permutation of all rows, fixed by the seed and the epoch's number; batches run
    on across its end.

    Arguments:
        count: Rows in the data set.
        batch: Rows per update.
        seed: Seed of the order.
        step: Number of the update, from 0.

    Returns:
        Row numbers, with shape (batch,), on the CPU.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected a data set of 1 row or more")
    first, parts = step * batch, []
    while batch > 0:
        epoch, row = divmod(first, count)
        parts.append(_epoch(count, seed, epoch)[row : row + batch])
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
def _epoch(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator_for(seed, epoch))
