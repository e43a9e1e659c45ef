"""PostgreSQL from the system's binaries: one server, one role, a database for each of its users."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from werkzeug.security import check_password_hash, generate_password_hash

from infra.files import Folder, write_private
from infra.service import Service
from infra.settings import HOST, Settings
from nfm.errors import InputError

DATABASES = ("prefect", "mlflow", "mlflow_auth")
ACCOUNT = "postgres"  # the system's; the server refuses root
HBA = "local all all peer map=stack\nhost all all 127.0.0.1/32 scram-sha-256\n"
OPTIONS = {"password_encryption": "scram-sha-256", "max_connections": "200", "shared_buffers": "64MB"}
SECONDS = 60.0


class Postgres:
    """The server of a stack.

    Over its socket, which is in a folder of its own user, that user and the stack's need no password: so a lost or
    rotated password is set anew at every start.

    Raises:
        InputError: A program is not installed, or the server's user cannot reach the folder.
    """

    def __init__(self, folder: Folder, settings: Settings) -> None:
        self._programs = find_programs()
        self._settings = settings
        self._home = folder.home / "postgres"
        self._data = self._home / "data"
        self._user = _account() if os.geteuid() == 0 else None

    def program(self, name: str) -> str:
        return str(self._programs / name)

    def prepare(self) -> None:
        """Makes the data folder, if there is none, and the rules of who may connect."""
        self._home.mkdir(exist_ok=True)
        self._home.chmod(0o700)
        if self._user:
            shutil.chown(self._home, self._user, pwd.getpwnam(self._user).pw_gid)
            self._check_reach()
        if not self._data.exists():
            new = self._home / "new"
            shutil.rmtree(new, ignore_errors=True)
            options = ["--auth-local=peer", "--auth-host=reject", "--encoding=UTF8", "--locale=C.UTF-8"]
            self._run([self.program("initdb"), f"--pgdata={new}", "--username=nfm", "--data-checksums", *options])
            new.rename(self._data)
        names = {pwd.getpwuid(os.geteuid()).pw_name, self._user} - {None}
        for name, text in {
            "pg_hba.conf": HBA,
            "pg_ident.conf": "".join(f"stack {name} nfm\n" for name in sorted(filter(None, names))),
        }.items():
            if write_private(self._data / name, text) and self._user:
                shutil.chown(self._data / name, self._user)

    def service(self) -> Service:
        """Returns the server."""
        options = {**OPTIONS, "listen_addresses": HOST, "unix_socket_directories": str(self._home)}
        command = [self.program("postgres"), "-D", str(self._data), "-p", str(self._settings.postgres_port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        port = self._settings.postgres_port
        return Service("postgres", tuple(command), {}, str(self._data), port, self._user, "INT")

    def is_ready(self) -> bool:
        """Returns whether the server takes connections."""
        command = [self.program("pg_isready"), "--quiet", "--dbname=postgres", *self._where()]
        return subprocess.run(command, check=False).returncode == 0

    def configure(self) -> None:
        """Sets the password and makes the databases that are not there."""
        password = self._settings["NFM_POSTGRES_PASSWORD"]
        self.query(f"ALTER ROLE nfm PASSWORD '{password}'")
        present = self.query("SELECT datname FROM pg_database").split()
        for name in DATABASES:
            if name not in present:
                self.query(f"CREATE DATABASE {name}")

    def set_mlflow_password(self) -> None:
        """Gives MLflow's user the password of the settings, where there is one with another.

        MLflow itself reads the password from its configuration only when it makes the user.
        """
        user, password = self._settings["NFM_MLFLOW_USER"], self._settings["NFM_MLFLOW_PASSWORD"]
        if self.query("SELECT to_regclass('users')", "mlflow_auth") != "users":
            return
        stored = self.query(f"SELECT password_hash FROM users WHERE username = '{user}'", "mlflow_auth")
        if stored and not check_password_hash(stored, password):
            new = generate_password_hash(password)
            self.query(f"UPDATE users SET password_hash = '{new}' WHERE username = '{user}'", "mlflow_auth")

    def query(self, statement: str, database: str = "postgres") -> str:
        """Runs one SQL statement, which goes over stdin, for it may hold a password."""
        command = [self.program("psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        command += ["--set=ON_ERROR_STOP=1", *self._where(), f"--dbname={database}"]
        answer = subprocess.run(command, input=statement, capture_output=True, text=True, check=False, timeout=SECONDS)
        if answer.returncode:
            raise InputError(f"PostgreSQL refuses a statement on {database}: {_line(answer.stderr)}")
        return answer.stdout.strip()

    def tool(self, name: str, *arguments: str) -> list[str]:
        """Returns the command of a client such as pg_dump."""
        return [self.program(name), *self._where(), *arguments]

    def _where(self) -> list[str]:
        return [f"--host={self._home}", f"--port={self._settings.postgres_port}", "--username=nfm"]

    def _check_reach(self) -> None:
        if self._as_user(["test", "-w", str(self._home)]).returncode:
            raise InputError(
                f"{self._home} is below a folder that the user {self._user}, which PostgreSQL runs as under root, may "
                "not enter; set NFM_STACK to a folder that it may, such as /var/lib/nfm"
            )

    def _run(self, command: list[str]) -> None:
        answer = self._as_user(command)
        if answer.returncode:
            raise InputError(f"{Path(command[0]).name} failed: {_line(answer.stderr)}; see its own message")

    def _as_user(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        account = pwd.getpwnam(self._user) if self._user else None
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **who)


def find_programs() -> Path:
    """Returns the folder of the newest PostgreSQL's programs, on the PATH or where Debian puts them.

    Raises:
        InputError: There is none.
    """
    if server := shutil.which("postgres"):
        return Path(server).resolve().parent
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not found:
        raise InputError("PostgreSQL's server is not installed; apt-get install postgresql")
    return max(found, key=lambda path: int(path.parent.name) if path.parent.name.isdecimal() else 0)


def _account() -> str:
    try:
        return pwd.getpwnam(ACCOUNT).pw_name
    except KeyError as error:
        raise InputError(
            f"PostgreSQL refuses to run as root, and there is no user {ACCOUNT} to run it as; start the stack as "
            f"another user, or adduser --system {ACCOUNT}"
        ) from error


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
