"""How many stages run at once, and which of those that wait goes first."""

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count


class Slots:
    """A semaphore that serves the most urgent first, and equals in the order of their coming.

    Arguments:
        size: How many may hold a slot at once.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._waiting: list[tuple[int, int]] = []
        self._number = count()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, urgency: int, count: int = 1) -> Iterator[None]:
        """Holds slots, once as many are free and nobody more urgent waits.

        Arguments:
            urgency: Higher goes first.
            count: How many, at most all; less urgent ones wait meanwhile, so that their turn comes.
        """
        ticket = (-urgency, next(self._number))
        with self._changed:
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: self._free >= count and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._free -= count
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()
