"""All servers of a team on one machine, without containers: `python -m infra.stack up`, `down` or `status`."""

import argparse
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from psutil import Process

from infra import servers
from infra.bucket import make_bucket, write_remote
from infra.files import Folder, write_private
from infra.http import ask
from infra.leftovers import end, listener, members
from infra.postgres import Postgres
from infra.service import Service
from infra.settings import HOST, Settings, load_settings
from infra.store import Store
from infra.supervisor import Supervisor
from nfm.errors import InputError

SECONDS = 90.0  # until everything answers
VARIABLES = {
    "postgres": "NFM_POSTGRES_PORT",
    "prefect": "NFM_PREFECT_PORT",
    "mlflow": "NFM_MLFLOW_PORT",
}


class NotReady(Exception):
    """A service does not answer in time."""


class Stack:
    """The services of one project.

    Arguments:
        root: The project's folder.

    Raises:
        InputError: A setting is missing or wrong, or a package.
    """

    def __init__(self, root: Path) -> None:
        self.settings: Settings = load_settings(root)
        self.folder = Folder.of(root)
        self.supervisor = Supervisor(self.folder)
        self._postgres = Postgres(self.folder, self.settings)
        self._store = Store(self.folder, self.settings)

    def up(self) -> None:
        """Brings every service up; what runs with the same settings is left alone.

        Raises:
            InputError: A port is taken by another program.
            NotReady: A service does not answer.
        """
        if not (self.folder.root / ".dvc").is_dir():
            raise InputError(f"{self.folder.root} has no .dvc, so it is no DVC project; run from the project's folder")
        self.folder.make()
        alive = self.supervisor.is_alive()
        if not alive:
            end(members(self.folder))
        self._postgres.prepare()
        self._store.prepare()
        services = self._services()
        self._check_ports(services)
        self.supervisor.write(services)
        self.supervisor.update() if alive else self.supervisor.start()
        deadline = time.monotonic() + SECONDS
        first = [service.name for service in services if service.name.startswith(("postgres", "s3"))]
        self._run(first, deadline)
        self._postgres.configure()
        self._postgres.set_mlflow_password()
        make_bucket(self.settings)
        self._migrate()
        self._run(["prefect", "mlflow"], deadline)
        self._run(["worker"], deadline)
        write_remote(self.folder.root, self.settings)
        write_private(self.folder.env, _exports(self.settings))

    def down(self) -> None:
        """Ends every process of the stack; what they have stored stays."""
        if self.supervisor.is_alive():
            self.supervisor.shutdown()
        end(members(self.folder))

    def report(self) -> list[str]:
        """Returns a line for each service: its state, and where it is."""
        conditions = self.supervisor.conditions() if self.supervisor.is_alive() else {}
        lines = []
        for service in self._services():
            condition = conditions.get(service.name)
            where = f"{HOST}:{service.port}" if service.port else ""
            state = condition.state.lower() if condition else "stopped"
            lines.append(f"{service.name:13} {state:9} {where:16} {condition.words if condition else ''}".rstrip())
        return lines

    def _services(self) -> list[Service]:
        made = [make(self.folder, self.settings) for make in (servers.prefect, servers.mlflow, servers.worker)]
        return [self._postgres.service(), *self._store.services(), *made]

    def _check_ports(self, services: Sequence[Service]) -> None:
        """Sees that no port is taken by a program which is not the stack's own."""
        own = members(self.folder)
        for service in services:
            port = service.port
            if port is None or _is_free(port):
                continue
            holder = listener(port)
            if holder in own:
                continue
            variable = VARIABLES.get(service.name, "NFM_S3_PORT")
            above = port - self.settings.s3_port if variable == "NFM_S3_PORT" else 0
            name = f"{variable} + {above}" if above else variable
            raise InputError(
                f"the port {port} ({name}), which {service.name} would listen at, is taken by {_words(holder)}; "
                f"end that, or give {variable} in .env another value"
            )

    def _run(self, names: Sequence[str], deadline: float) -> None:
        """Starts services and waits until all answer."""
        self.supervisor.run(names)
        waiting = list(names)
        while waiting := [name for name in waiting if not self._is_ready(name)]:
            if time.monotonic() > deadline:
                raise NotReady(self._why(waiting[0]))
            time.sleep(0.2)

    def _is_ready(self, name: str) -> bool:
        settings = self.settings
        probes: Mapping[str, Callable[[], bool]] = {
            "postgres": self._postgres.is_ready,
            "s3": lambda: ask(f"{settings.s3_url}/healthcheck").status == 200,
            "prefect": lambda: ask(f"{settings.prefect_url}/health").status == 200,
            "mlflow": lambda: ask(f"{settings.mlflow_url}/health").status == 200,
            "worker": self._worker_is_online,
        }
        if name in probes:
            return probes[name]()
        port = next(service.port for service in self._store.services() if service.name == name)
        return port is None or not _is_free(port)

    def _worker_is_online(self) -> bool:
        """Whether the worker that runs now has reported."""
        pid = self.supervisor.conditions()["worker"].pid
        url = f"{self.settings.prefect_url}/work_pools/{servers.POOL}/workers/filter"
        found = ask(url, self.settings["NFM_PREFECT_AUTH"], {}).json()
        return bool(pid) and isinstance(found, list) and any(each.get("status") == "ONLINE" for each in found)

    def _migrate(self) -> None:
        """Brings MLflow's tables to its version, as it does by itself only for empty databases.

        Prefect's server migrates its own at each start.
        """
        noted, current = self.folder.home / "mlflow" / "version", version("mlflow")
        if self._postgres.query("SELECT to_regclass('alembic_version')", "mlflow") and (
            not noted.exists() or noted.read_text() != current
        ):
            self.supervisor.stop(["mlflow"])
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", self.settings.database("mlflow")]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                raise NotReady(f"`mlflow db upgrade` failed: {' '.join(answer.stderr.split())[-300:]}")
        write_private(noted, current)

    def _why(self, name: str) -> str:
        log = self.folder.logs / f"{name}.log"
        with suppress(OSError):
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return f"{name} does not answer within {SECONDS:.0f} s; the last line of {log}: {lines[-1][:300]}"
        return f"{name} does not answer within {SECONDS:.0f} s, and has written nothing to {log}"


def _words(process: Process | None) -> str:
    return f"process {process.pid} ({process.name()})" if process else "another process"


@contextmanager
def alone(folder: Folder) -> Iterator[None]:
    """Lets one command at a time change a stack; others wait."""
    folder.make()
    with (folder.home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _exports(settings: Settings) -> str:
    lines = [f"export {name}='{value}'" for name, value in settings.client_environment().items()]
    return "# `. FILE` points a shell at the stack; holds passwords\n" + "\n".join(lines) + "\n"


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError:
            return False
    return True


def main() -> None:
    """Runs the command line; bad input is one sentence and exit status 2, a service that fails exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=__doc__)
    parser.add_argument("what", choices=("up", "down", "status"))
    what = parser.parse_args().what
    try:
        stack = Stack(Path.cwd())
        _act(stack, what)
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        sys.exit(2)
    except (NotReady, OSError) as error:
        print(f"nfm: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _act(stack: Stack, what: str) -> None:
    if what == "status":
        lines = stack.report()
        print("\n".join(lines))
        sys.exit(any(" running " not in line for line in lines))
    with alone(stack.folder):
        if what == "down":
            stack.down()
            print(f"the stack is stopped; what it stored stays in {stack.folder.home}")
            return
        began = time.monotonic()
        stack.up()
    print("\n".join(stack.report()))
    print(f"ready after {time.monotonic() - began:.0f} s; `. {os.path.relpath(stack.folder.env)}` points a shell at it")


if __name__ == "__main__":
    main()
