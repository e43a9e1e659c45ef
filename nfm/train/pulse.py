"""Life signs of the processes of one launch: one that is frozen, or on a machine that is gone, ends the launch soon.

The launcher sees a process that ends. For one that does not answer the others wait until torch's timeout, which is many
minutes, since it must not end a slow one. A thread that only counts tells the two apart.
"""

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any, Self

LIMIT = 20.0  # seconds
_numbers = count()


class Pulse:
    """Counts in the launch's store while the block runs, and watches the process of the next rank do so.

    One that has stopped counting is killed where it is on this machine, so that the launcher names it, ends the
    others and starts anew if it may. One of another machine cannot be: then this process ends. A single process
    has no pulse.

    Arguments:
        limit: Seconds without a sign of life.
        every: Seconds between two signs.
    """

    def __init__(self, limit: float = LIMIT, every: float = 1.0) -> None:
        self._limit, self._every = limit, every
        self._rank, self._processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if self._processes > 1:
            self._store = self._connect()
            self._sign(0)  # before there is anything to freeze in
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._processes > 1:
            self._ended.set()
            self._thread.join()

    def _connect(self) -> Any:
        from torch import distributed

        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=self._limit),
        )
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return distributed.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
            f"nfm-pulse-{start}-{next(_numbers)}", store
        )

    def _beat(self) -> None:
        beats = count(1)
        watched = str((self._rank + 1) % self._processes)
        last, silent = "", 0.0
        try:
            while not self._ended.wait(self._every):
                self._sign(next(beats))
                sign = self._store.get(watched).decode() if self._store.check([watched]) else ""
                # Its own rounds and not the clock's, which goes on while all of a machine is suspended.
                silent = 0.0 if sign != last or sign == "ended" else silent + self._every
                last = sign
                if silent >= self._limit:
                    self._end(watched, *last.split()[:2])
                    return
            self._store.set(str(self._rank), "ended")
        except RuntimeError as error:
            # The store's process is gone. If that is why the launcher is about to end this one, let it.
            if not self._ended.wait(self._limit):
                _say(f"the launch's store does not answer ({' '.join(str(error).split())}); this process ends")
                os._exit(1)

    def _sign(self, number: int) -> None:
        self._store.set(str(self._rank), f"{socket.gethostname()} {os.getpid()} {number}")

    def _end(self, rank: str, host: str = "", process: str = "") -> None:
        what = f"process {rank} has shown no life for {self._limit:g} s"
        if host == socket.gethostname():
            _say(f"{what} and is killed, so that no other waits for it")
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(int(process), signal.SIGKILL)
        else:
            _say(
                f"{what}, on {host or 'a machine that is not known'}; this process ends, so that no other waits for it"
            )
            os._exit(1)


def _say(sentence: str) -> None:
    print(f"nfm: {sentence}", file=sys.stderr, flush=True)
