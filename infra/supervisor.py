"""The process manager: supervisord over the services, and what it says of them."""

import configparser
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import Faults, SupervisorTransport

from infra.files import Folder, write_private
from infra.leftovers import MARK, NAME
from infra.service import Service
from nfm.errors import InputError

SECONDS = 20.0
RUNNING = ("RUNNING", "STARTING", "BACKOFF")


@dataclass(frozen=True)
class Condition:
    """What the supervisor says of a service.

    Attributes:
        state: RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL, ...
        pid: The process, or 0.
        words: For people.
    """

    state: str
    pid: int
    words: str


class Supervisor:
    """supervisord of one stack, spoken to over its socket."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._file = folder.home / "supervisord.conf"

    @property
    def _proxy(self) -> Any:
        """A connection of its own for each call, for one that has failed once fails ever after."""
        transport: Any = SupervisorTransport("", "", f"unix://{self._folder.socket}")
        return ServerProxy("http://stack", transport=transport).supervisor  # the transport alone knows where

    def is_alive(self) -> bool:
        """Returns whether it answers."""
        with suppress(OSError, HTTPException, Fault):
            return self._proxy.getState()["statename"] == "RUNNING"
        return False

    def start(self) -> None:
        """Starts it; services wait for `run`."""
        environment = {**os.environ, MARK: str(self._folder.home)}
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(self._file)]
        answer = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
        if answer.returncode:
            raise InputError(f"supervisord does not start: {' '.join((answer.stdout + answer.stderr).split())[-300:]}")
        deadline = time.monotonic() + SECONDS
        while not self.is_alive():
            if time.monotonic() > deadline:
                raise InputError(f"supervisord does not answer; see {self._folder.logs}/supervisord.log")
            time.sleep(0.05)

    def write(self, services: Sequence[Service]) -> None:
        """Writes its configuration and a file for each service."""
        files = {service.name: self._folder.home / "services" / service.name for service in services}
        for service in services:
            write_private(files[service.name], service.text())
        places = enumerate(services, 1)
        programs = [_program(self._folder, service, files[service.name], place) for place, service in places]
        write_private(self._file, "\n".join([_own(self._folder), *programs]))

    def ports(self) -> dict[str, int | None]:
        """Returns the services that were last written, in their order, each with its port."""
        config = configparser.RawConfigParser()
        config.read(self._file)
        names = [section.removeprefix("program:") for section in config.sections() if section.startswith("program:")]
        return {name: json.loads((self._folder.home / "services" / name).read_text())["port"] for name in names}

    def update(self) -> list[str]:
        """Takes up a changed configuration; stops what has changed or is gone.

        Returns:
            The services that were stopped.
        """
        (added, changed, removed), *_ = self._proxy.reloadConfig()
        for name in (*changed, *removed):
            self._proxy.stopProcessGroup(name)
            self._proxy.removeProcessGroup(name)
        for name in (*changed, *added):
            self._proxy.addProcessGroup(name)
        return [*changed, *removed]

    def run(self, names: Sequence[str]) -> list[str]:
        """Starts services that are not running.

        Returns:
            Those that it has started.
        """
        present = self.conditions()
        waiting = [name for name in names if present[name].state not in RUNNING]
        for name in waiting:
            try:
                self._proxy.startProcess(name, False)
            except Fault as fault:
                if fault.faultCode != Faults.ALREADY_STARTED:
                    raise InputError(f"{name} does not start: {fault.faultString}") from fault
        return waiting

    def stop(self, names: Sequence[str]) -> None:
        """Stops services, the last one first."""
        for name in reversed(names):
            with suppress(Fault):
                self._proxy.stopProcess(name)

    def conditions(self) -> dict[str, Condition]:
        """Returns what is known of every service."""
        return {
            each["name"]: Condition(each["statename"], each["pid"], each["description"])
            for each in self._proxy.getAllProcessInfo()
        }

    def shutdown(self) -> None:
        """Stops all services, those that were started last first, and then itself."""
        pid = self._proxy.getPID()
        self._proxy.shutdown()
        deadline = time.monotonic() + 3 * SECONDS
        while _exists(pid) and time.monotonic() < deadline:
            time.sleep(0.05)


def _own(folder: Folder) -> str:
    user = "user=root\n" if os.geteuid() == 0 else ""  # else it warns
    return f"""\
[unix_http_server]
file={_escaped(folder.socket)}
chmod=0600
[supervisord]
{user}logfile={_escaped(folder.logs)}/supervisord.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile={_escaped(folder.home)}/supervisord.pid
childlogdir={_escaped(folder.logs)}
umask=022
minfds=1024
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""


def _program(folder: Folder, service: Service, file: Path, place: int) -> str:
    marks = {MARK: folder.home, NAME: service.name, "NFM_STACK_DIGEST": service.digest()}
    environment = ",".join(f'{name}="{_escaped(value)}"' for name, value in marks.items())
    return f"""\
[program:{service.name}]
command="{sys.executable}" -m infra.service "{_escaped(file)}"
directory={_escaped(folder.root)}
environment={environment}
priority={place}
autostart=false
autorestart=true
startsecs=2
startretries=1000000
stopsignal={service.signal}
stopwaitsecs=20
stopasgroup={"false" if service.name == "postgres" else "true"}
killasgroup=true
redirect_stderr=true
stdout_logfile={_escaped(folder.logs / service.name)}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


def _escaped(value: object) -> str:
    text = str(value)
    if '"' in text or "\n" in text:
        raise InputError(f"{text!r} has a quotation mark, which supervisord's file cannot hold; rename the folder")
    return text.replace("%", "%%")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
