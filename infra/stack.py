"""All servers of a team on one machine, without containers: `python -m infra.stack up`, `down` or `status`."""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from xmlrpc.client import Error as ProtocolError

from psutil import Error as PsutilError
from psutil import NoSuchProcess, Process

from infra import servers
from infra.bucket import make_bucket, write_remote
from infra.files import Folder, write_private
from infra.http import ask
from infra.leftovers import end, members
from infra.ports import check_ports, is_free
from infra.postgres import Postgres
from infra.service import Service
from infra.settings import HOST, Settings, load_settings
from infra.store import Store
from infra.supervisor import Supervisor
from nfm.errors import InputError

SECONDS = 600.0  # until everything answers; two quiet cores take some 15
ATTEMPTS = 3  # starts after which a service that ends by itself is given up
APPLICATIONS = ("prefect", "mlflow", "worker")


class NotReady(Exception):
    """A service does not answer in time."""


# What a server or the process manager can do to a command, in main.
FAILURES = (NotReady, OSError, HTTPException, ProtocolError, subprocess.SubprocessError, PsutilError)


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
        self.postgres = Postgres(self.folder, self.settings)
        self._store = Store(self.folder, self.settings)

    def up(self) -> None:
        """Brings every service up; what runs with the same settings is left alone.

        Raises:
            InputError: A port is taken by another program.
            NotReady: A service does not answer.
        """
        deadline = time.monotonic() + SECONDS
        storage = self._start_storage()
        self._wait(["postgres"], deadline)
        self._configure()
        self._migrate()
        self.supervisor.run(["prefect", "mlflow"])
        self._wait([*storage, "prefect", "mlflow"], deadline)
        make_bucket(self.settings)
        self.supervisor.run(["worker"])
        self._wait(["worker"], deadline)
        write_remote(self.folder.root, self.settings)
        write_private(self.folder.env, _exports(self.settings))

    def up_storage(self) -> None:
        """Brings PostgreSQL and the S3 server up, with the databases and the bucket; raises as `up` does."""
        self._wait(self._start_storage(), time.monotonic() + SECONDS)
        self._configure()
        make_bucket(self.settings)

    def stop_applications(self) -> None:
        """Stops what uses the databases; `up` starts it again."""
        self.supervisor.stop(APPLICATIONS)
        (self.folder.home / "mlflow" / "version").unlink(missing_ok=True)  # of the tables, which may be others then

    def _start_storage(self) -> list[str]:
        """Starts the process manager, PostgreSQL and the S3 server's processes; returns their names."""
        if not (self.folder.root / ".dvc").is_dir():
            raise InputError(f"{self.folder.root} has no .dvc, so it is no DVC project; run from the project's folder")
        alive = self.supervisor.is_alive()
        if not alive:
            end(members(self.folder))
        check_ports(self.settings, members(self.folder))
        self.postgres.prepare()
        self._store.prepare()
        services = self._services()
        self.supervisor.write(services)
        self.supervisor.update() if alive else self.supervisor.start()
        storage = [service.name for service in services if service.name not in APPLICATIONS]
        self.supervisor.run(storage)
        return storage

    def _configure(self) -> None:
        self.postgres.configure()
        self.postgres.set_mlflow_password()

    def _services(self) -> list[Service]:
        made = [make(self.folder, self.settings) for make in (servers.prefect, servers.mlflow, servers.worker)]
        return [self.postgres.service(), *self._store.services(), *made]

    def _wait(self, names: Sequence[str], deadline: float) -> None:
        """Returns once services answer.

        Raises:
            NotReady: One does not in time.
        """
        waiting, seen = list(names), {name: set[int]() for name in names}
        while waiting := [name for name in waiting if not self.answers(name)]:
            conditions = self.supervisor.conditions()
            for name in waiting:
                seen[name] |= {conditions[name].pid} - {0}
                if len(seen[name]) > ATTEMPTS or time.monotonic() > deadline:
                    raise NotReady(self._why(name))
            time.sleep(0.2)

    def answers(self, name: str) -> bool:
        """Returns whether a service does what it is there for."""
        settings = self.settings
        probes: Mapping[str, Callable[[], bool]] = {
            "postgres": self.postgres.is_ready,
            "s3": lambda: ask(f"{settings.s3_url}/healthcheck").status == 200,
            "prefect": lambda: ask(f"{settings.prefect_url}/health").status == 200,
            "mlflow": lambda: ask(f"{settings.mlflow_url}/health").status == 200,
            "worker": self._worker_is_online,
        }
        if name in probes:
            return probes[name]()
        port = next(service.port for service in self._store.services() if service.name == name)
        return port is None or not is_free(port)

    def _worker_is_online(self) -> bool:
        """Whether the worker that runs now has reported, and not only one before it."""
        url = f"{self.settings.prefect_url}/work_pools/{servers.POOL}/workers/filter"
        found = ask(url, self.settings["NFM_PREFECT_AUTH"], {}).json()
        if not isinstance(found, list) or not found:
            return False
        try:
            began = Process(self.supervisor.conditions()["worker"].pid).create_time()
        except NoSuchProcess:
            return False
        beats = [
            datetime.fromisoformat(each["last_heartbeat_time"]) for each in found if each.get("last_heartbeat_time")
        ]
        return any(beat.timestamp() > began for beat in beats)

    def _migrate(self) -> None:
        """Brings MLflow's tables to its version, as it does by itself only for empty databases.

        Prefect's server migrates its own at each start.
        """
        noted, current = self.folder.home / "mlflow" / "version", version("mlflow")
        if self.postgres.query("SELECT to_regclass('alembic_version')", "mlflow") and (
            not noted.exists() or noted.read_text() != current
        ):
            self.supervisor.stop(["mlflow"])
            address = f"postgresql://nfm@{HOST}:{self.settings.postgres_port}/mlflow"
            environment = {**os.environ, "PGPASSWORD": self.settings["NFM_POSTGRES_PASSWORD"]}
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", address]
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if answer.returncode:
                raise NotReady(f"`mlflow db upgrade` failed: {' '.join(answer.stderr.split())[-300:]}")
        write_private(noted, current)

    def _why(self, name: str) -> str:
        log = self.folder.logs / f"{name}.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
        last = f"its last line is: {lines[-1].strip()[:300]}" if lines else "which is empty"
        return f"{name} does not get to answer; see {log}, {last}"


def down(folder: Folder) -> None:
    """Ends every process of a stack, whether or not its settings can still be read; what it stored stays."""
    supervisor = Supervisor(folder)
    if supervisor.is_alive():
        supervisor.shutdown()
    end(members(folder))


def report(folder: Folder) -> list[str]:
    """Returns a line for each service: its state, and where it is."""
    supervisor = Supervisor(folder)
    conditions = supervisor.conditions() if supervisor.is_alive() else {}
    lines = []
    for name, port in supervisor.ports().items():
        condition = conditions.get(name)
        where = f"{HOST}:{port}" if port else ""
        state = condition.state.lower() if condition else "stopped"
        lines.append(f"{name:13} {state:9} {where:16} {condition.words if condition else ''}".rstrip())
    return lines or [f"no stack was started in {folder.home}"]


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


def main() -> None:
    """Runs the command line; bad input is one sentence and exit status 2, a service that fails exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=__doc__)
    parser.add_argument("what", choices=("up", "down", "status"))
    what = parser.parse_args().what
    try:
        _act(what)
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        sys.exit(2)
    except FAILURES as error:
        print(f"nfm: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _act(what: str) -> None:
    folder = Folder.of(Path.cwd())
    if what == "status":
        lines = report(folder)
        print("\n".join(lines))
        sys.exit(any(" running " not in line for line in lines))
    with alone(folder):
        if what == "down":
            down(folder)
            print(f"the stack is stopped; what it stored stays in {folder.home}")
            return
        began = time.monotonic()
        Stack(folder.root).up()
    print("\n".join(report(folder)))
    print(f"ready after {time.monotonic() - began:.0f} s; `. {os.path.relpath(folder.env)}` points a shell at it")


if __name__ == "__main__":
    main()
