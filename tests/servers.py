"""Servers that tests start as processes of their own."""

import socket
import subprocess
import time
import urllib.request
from contextlib import suppress


def free_port() -> int:
    """Returns a port of the loopback interface that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_answer(address: str, server: subprocess.Popen[bytes]) -> None:
    """Returns once a server answers; fails if it ends first or takes two minutes."""
    for _ in range(600):
        assert server.poll() is None, f"{server.args} has ended"
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"{server.args} does not answer")
