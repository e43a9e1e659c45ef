"""Processes that a stack has left behind: found by a mark in their environment, and ended."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil

from infra.files import Folder

MARK = "NFM_STACK_MEMBER"  # in the environment of all that the stack starts; its folder
NAME = "NFM_STACK_SERVICE"  # the service's name
GRACE = 10.0  # seconds between the request to end and SIGKILL


def members(folder: Folder, name: str | None = None) -> list[psutil.Process]:
    """Returns the processes of a stack, or of one of its services, without this one and those above it.

    PostgreSQL's overwrite their environment; they are known by their data folder.
    """
    data = str(folder.home / "postgres" / "data")

    def belongs(process: psutil.Process) -> bool:
        environment = process.environ()
        if environment.get(MARK) == str(folder.home):
            return name is None or environment.get(NAME) == name
        return name in (None, "postgres") and process.name() == "postgres" and process.cwd() == data

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in _matching(belongs) if process.pid not in own]


def end(processes: list[psutil.Process]) -> None:
    """Ends processes: by what each takes for an orderly stop, and after a grace by SIGKILL."""
    for process in processes:
        with suppress(psutil.Error):
            # SIGTERM lets PostgreSQL wait for its clients, SIGINT does not.
            process.send_signal(2 if process.name() == "postgres" else 15)
    _, alive = psutil.wait_procs(processes, GRACE)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, GRACE)


def listener(port: int) -> psutil.Process | None:
    """Returns the process that listens at a port, as far as this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr
            if connection.status == psutil.CONN_LISTEN and connection.pid and address.port == port:
                return psutil.Process(connection.pid)
    return None


def _matching(belongs: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and belongs(process):
                yield process
