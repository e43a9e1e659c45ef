"""`dvc repro` by hand beside a flow run: waits for what another process has, where DVC itself gives up at once."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.process import Processes, environment_here
from flows.words import is_busy

PAUSE = 2.0  # seconds before another try
TRIES = 1800


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dvc repro` with some arguments, again and again while another process is in the way.

    Returns:
        DVC's exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *given]
    processes = Processes()
    try:
        for number in range(TRIES):
            busy: list[str] = []
            status = processes.run(command, Path.cwd(), environment_here(), lambda line, busy=busy: _show(line, busy))
            if not (status and busy):
                return status
            if number == 0:
                print("nfm: another run has the files of a stage; this one goes on when they are free", flush=True)
            time.sleep(PAUSE)
    finally:
        processes.stop()
    print("nfm: another run has had the files of a stage for an hour; see `ps` for its dvc", file=sys.stderr)
    return 1


def _show(line: str, busy: list[str]) -> None:
    """Prints a line, unless it is DVC's complaint that another process is in the way, or follows that."""
    if busy or is_busy(line):
        busy.append(line)
    else:
        print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
