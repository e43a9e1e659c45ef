"""Servers that tests start as processes of their own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """Returns a port of the loopback interface that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_answer(address: str, server: subprocess.Popen[bytes]) -> None:
    """Returns once a server answers; fails if it ends first or takes ten minutes."""
    for _ in range(3000):
        assert server.poll() is None, f"{server.args} has ended"
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"{server.args} does not answer")


@contextmanager
def prefect_server_in(folder: Path) -> Iterator[str]:
    """Starts a Prefect server with its scheduler, as `prefect server start` gives it; yields its API's address.

    Arguments:
        folder: Where its database and its log are.
    """
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/api"
    try:
        wait_for_answer(f"{address}/health", server)
        yield address
    finally:
        server.terminate()
        server.wait(30)
