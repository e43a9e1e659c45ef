"""Samples that several processes make by turns, and that come in their order."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor

from nfm.solve.draws import Draws
from nfm.train.launch import open_processes

Made = TypeVar("Made")


def by_turns(
    draws: Draws, batch: int, make: Callable[[Tensor, Tensor | None], Made]
) -> Iterator[tuple[Made, Tensor | None]]:
    """Gives what is made of all draws and their labels, a batch at a time, in all processes the same.

    Every batch is made by one process, with the bits that a single one gives it, and goes to the others by pickle; of
    each process one batch is held at a time.

    Arguments:
        draws: Noise and labels of the samples.
        batch: Samples at a time.
        make: Gives what is wanted of some noise and labels, on the CPU.
    """
    from accelerate.utils import gather_object

    state, spans = open_processes(), draws.spans(batch)
    for first in range(0, len(spans), state.num_processes):
        turn = spans[first : first + state.num_processes]
        mine = turn[state.process_index : state.process_index + 1]
        made = [make(draws.noise(*span), draws.label(*span)) for span in mine]
        for span, parts in zip(turn, gather_object(made), strict=True):
            yield parts, draws.label(*span)
