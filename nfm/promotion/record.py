"""The record of promotions: lines that are only ever added to a file of the project."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

# Not kept by git: a schedule adds to it, and a checkout that it made dirty would be refused by other machines. The
# copies that everybody sees are the tag of the version and the JSON artifact of its run.
FILE = "promotions.jsonl"
Action = Literal["first", "promoted", "refused", "forced", "rolled back", "unchanged"]  # the last is not recorded


@dataclass(frozen=True)
class Entry:
    """One decision.

    Attributes:
        action: What was decided.
        model: The registered model.
        version: Whom it is about: the challenger, or after a rollback the new champion.
        champion: Who was champion before; None if nobody.
        reason: One sentence.
        time: When, with a time zone.
        figures: The numbers behind it.
    """

    action: Action
    model: str
    version: int
    champion: int | None
    reason: str
    time: datetime
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """The entry as JSON holds it."""
        return {
            "action": self.action,
            "model": self.model,
            "version": self.version,
            "champion_before": self.champion,
            "reason": self.reason,
            "time": self.time.isoformat(timespec="seconds"),
            **({"figures": dict(self.figures)} if self.figures else {}),
        }

    @property
    def stamp(self) -> str:
        """The time as it stands in names of tags and artifacts, to the microsecond so that none is replaced."""
        return self.time.strftime("%Y%m%dT%H%M%S.%f")


def append(root: Path, entry: Entry) -> None:
    """Adds a line to the record, which is on the disk before this returns."""
    line = json.dumps(entry.content, ensure_ascii=False, allow_nan=False)
    with (root / FILE).open("a+b") as file:
        if file.tell() and not _ends_a_line(file):
            line = f"\n{line}"  # after a kill in the middle of one
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def read(root: Path) -> Iterator[dict[str, Any]]:
    """Gives the entries of the record from the first; a line that a kill has cut is passed over."""
    try:
        lines = (root / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Lets one process at a time decide; others wait.

    The lock lies beside a local database, which several folders may share, and otherwise in the project's folder. It
    ends with its process. On a server it keeps apart the processes of one folder only; between machines
    `nfm.promotion.decide` compares who is champion before and after.

    Arguments:
        root: The project's folder.
    """
    import fcntl

    with (_place(root) / ".promotions.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _place(root: Path) -> Path:
    database = os.environ.get("MLFLOW_TRACKING_URI", "").partition("sqlite:///")[2]
    folder = Path(database).parent if database else root
    return folder if folder.is_dir() else root


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
