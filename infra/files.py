"""Files that only this user may read, and where the stack keeps its own."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from nfm.errors import InputError

SOCKET_LENGTH = 100  # of the 107 bytes that the kernel takes, less what the servers append


def write_private(path: Path, text: str) -> bool:
    """Writes a file with mode 0600, whole or not at all.

    Returns:
        Whether the content is another than before.
    """
    if path.is_file() and path.read_text() == text and path.stat().st_mode & 0o777 == 0o600:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@dataclass(frozen=True)
class Folder:
    """The one folder of a stack: configuration, data, logs.

    Attributes:
        root: The project's folder, where workers run.
        home: The stack's folder: NFM_STACK, or `.stack` in the project's.
    """

    root: Path
    home: Path

    @classmethod
    def of(cls, root: Path) -> "Folder":
        """Returns the stack's folder for a project.

        Raises:
            InputError: Its path is too long for the sockets in it.
        """
        root = root.resolve()
        home = (root / (os.environ.get("NFM_STACK") or ".stack")).resolve()
        if len(os.fsencode(home / "postgres/.s.PGSQL.65535.lock")) > SOCKET_LENGTH:
            raise InputError(f"{home} is too long a path for the sockets in it; set NFM_STACK to a shorter one")
        return cls(root, home)

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def socket(self) -> Path:
        return self.home / "supervisor.sock"

    @property
    def env(self) -> Path:
        """The file that a shell sources."""
        return self.home / "env"

    def make(self) -> None:
        """Makes the folder; other users may pass through, as PostgreSQL's has to, but not look."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o711)
        self.private("logs")

    def private(self, name: str) -> Path:
        """Makes and returns a folder in it that only this user may enter."""
        path = self.home / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        return path
