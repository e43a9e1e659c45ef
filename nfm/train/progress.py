"""How far a training is, shown on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_REFRESH = 0.1  # seconds; drawing at every update would cost as much as a small model's update


class Display:
    """A context in which updates are shown.

    Arguments:
        name: What is trained.
        steps: Updates in all.
        start: Updates behind it, more than 0 when the training is resumed.
        shown: Whether to show anything, which of several processes one does.
    """

    def __init__(self, name: str, steps: int, start: int, shown: bool) -> None:
        self._name, self._steps, self._start, self._shown = name, steps, start, shown
        self._began = self._drawn = time.monotonic()
        self._bar: Progress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Display":
        if self._shown and self._start:
            self._print(f"resumed after update {self._start} of {self._steps}")
        if self._shown and sys.stderr.isatty():
            self._bar = self._stack.enter_context(_bar())
            self._task = self._bar.add_task(self._name, total=self._steps, completed=self._start, loss="", speed="")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def update(self, step: int, loss: float) -> None:
        """Shows an update on a bar."""
        now = time.monotonic()
        if self._bar is None or (now - self._drawn < _REFRESH and step < self._steps):
            return
        self._drawn = now
        speed = f"{self._speed(step):.1f} it/s"
        self._bar.update(self._task, completed=step, loss=f"loss {loss:.4f}", speed=speed)

    def line(self, step: int, loss: float | None) -> None:
        """Shows a report as a line where there is no bar."""
        if not self._shown or self._bar is not None:
            return
        speed = self._speed(step)
        left = round((self._steps - step) / speed)
        text = "not finite" if loss is None else f"{loss:.4f}"
        self._print(
            f"update {step}/{self._steps}  loss {text}  {speed:.1f} it/s  "
            f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )

    def _speed(self, step: int) -> float:
        return (step - self._start) / max(time.monotonic() - self._began, 1e-9)

    def _print(self, text: str) -> None:
        print(f"{self._name}  {text}", file=sys.stderr, flush=True)


def _bar() -> "Progress":
    from rich.console import Console  # a fifth of a second, where no terminal is to see it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
