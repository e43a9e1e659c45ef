"""A server of the stack as its supervisor runs it; and the small program that becomes the server.

`python -m infra.service FILE` ends what an earlier instance has left, such as the child of a killed parent that still
holds the port, and is replaced by the server's own command. So secrets are in no command line, and in no file but
FILE, which only this user may read.
"""

import hashlib
import json
import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.settings import SECRETS

# What a server must not take over from the shell that started the stack.
FOREIGN = ("AWS_", "MLFLOW_", "PREFECT_", "PG", "_MLFLOW_")


@dataclass(frozen=True)
class Service:
    """One server.

    Attributes:
        name: Its name, and that of its log.
        command: Program and arguments.
        environment: Variables on top of the shell's that started the stack.
        folder: Working directory.
        port: Where it listens, if it does.
        user: Whose rights it runs with, when the stack is started by root; else the starter's.
        signal: What asks it to stop.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    port: int | None = None
    user: str | None = None
    signal: str = "TERM"

    def text(self) -> str:
        """Returns the service as the text of its file."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def digest(self) -> str:
        """Returns what changes when the service has to be restarted."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]


def environment_of(service: Mapping, outer: Mapping[str, str]) -> dict[str, str]:
    """Returns a server's whole environment."""
    kept = {k: v for k, v in outer.items() if not k.startswith(FOREIGN) and k not in SECRETS}
    return {**kept, **service["environment"]}


def become(path: Path) -> None:
    """Replaces this process by the server that a file describes."""
    from infra.files import Folder
    from infra.leftovers import NAME, end, members

    service = json.loads(path.read_text())
    if service["port"]:  # a worker's flow runs outlive it, and are left to end well
        end(members(Folder(Path(service["folder"]), path.parents[1]), os.environ[NAME]))
    environment = environment_of(service, os.environ)
    if service["user"]:
        account = pwd.getpwnam(service["user"])
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        environment["HOME"] = account.pw_dir
    os.chdir(service["folder"])
    os.execvpe(service["command"][0], service["command"], environment)


if __name__ == "__main__":
    become(Path(sys.argv[1]))
