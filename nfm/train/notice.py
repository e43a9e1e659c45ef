"""SIGTERM, as at a preemption: the update under way is finished and saved, then the process ends."""

import signal
import threading
from types import TracebackType
from typing import Any, Self


class Stopped(SystemExit):
    """The end that SIGTERM has asked for, with the exit status by which shells and Kubernetes know it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Notice:
    """Takes SIGTERM down instead of dying of it, while the block runs.

    Only the main thread can; in another one SIGTERM does what it did before.

    Attributes:
        given: Whether the process has been asked to end.
    """

    given = False

    def __enter__(self) -> Self:
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._before: Any = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def _take(self, number: int, frame: object) -> None:
        self.given = True
