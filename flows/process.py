"""Child processes of a flow run: their output line by line, and an end to all of them at once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 25.0  # seconds between SIGTERM and SIGKILL, for a checkpoint; less than Prefect's own 30


class Processes:
    """Starts commands, each as the leader of its own process group, and can stop all of them.

    The groups keep a Ctrl-C at the terminal from reaching a command before the flow knows of it,
    and let `stop` reach what a command has itself started. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> int:
        """Runs a command to its end.

        Arguments:
            command: Program and arguments.
            folder: Working directory.
            environment: The whole environment.
            on_line: Receives each line of stdout and stderr, without its line break, as it comes.

        Returns:
            The exit status; minus the signal's number when a signal ended the command, and minus
            SIGTERM when `stop` came before the start.
        """
        with self._changed:
            if self._stopped:
                return -signal.SIGTERM
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(child)
        try:
            assert child.stdout is not None
            with child.stdout:
                for line in child.stdout:
                    on_line(line.rstrip("\n"))
            return child.wait()
        finally:
            with self._changed:
                self._running.discard(child)
                self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopped

    def stop(self) -> None:
        """Ends every running command, by SIGTERM and after a grace by SIGKILL; starts no other.

        A command has ended when nobody holds its output any more: DVC dies of SIGTERM at once, and the stage that it
        has started still has a checkpoint to write.
        """
        with self._changed:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _signal_group(child, signal.SIGTERM)
        with self._changed:
            self._changed.wait_for(lambda: self._running.isdisjoint(running), GRACE)
        for child in running:
            # Also where the leader has ended: what it started may have ignored SIGTERM.
            _signal_group(child, signal.SIGKILL)


def environment_here() -> dict[str, str]:
    """Returns a stage's environment on this machine: this interpreter's programs first, output unbuffered."""
    programs = os.path.dirname(sys.executable)
    return {
        # Some S3-compatible stores refuse the checksums that boto3 adds since 1.36.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def last_words(lines: Sequence[str], status: int) -> str:
    """Returns the sentence that the command line prints for bad input, or how a stage ended.

    Arguments:
        lines: What it has printed.
        status: Its exit status, or minus a signal's number.
    """
    own = [line for line in lines if line.strip() and not line.startswith("ERROR: ")]
    sentences = [line.removeprefix("nfm: ") for line in own if line.startswith("nfm: ")]
    if status == 2 and sentences:
        return sentences[-1]
    return f"the stage ended with {ending(status)}; its last line: {own[-1] if own else 'none'}"


def ending(status: int) -> str:
    """Returns an exit status in words."""
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def _signal_group(child: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
