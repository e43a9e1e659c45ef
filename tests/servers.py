"""Servers that tests start as processes of their own."""

import os
import signal
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


# In memory, with one connection: of several on a file one may wait a minute for a lock that another holds.
IN_MEMORY = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"


@contextmanager
def prefect_server_in(folder: Path) -> Iterator[str]:
    """Starts a Prefect server with its scheduler, as `prefect server start` gives it; yields its API's address.

    Arguments:
        folder: Its home, where its log is.
    """
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": IN_MEMORY,
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


@contextmanager
def mlflow_server_in(folder: Path) -> Iterator[str]:
    """Starts MLflow's server on the mlflow.db of a folder, with its artifacts beside it; yields its address."""
    port = free_port()
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--default-artifact-root", "mlflow-artifacts:/", "--artifacts-destination", str(folder / "mlartifacts")]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
