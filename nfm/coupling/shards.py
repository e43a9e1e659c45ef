"""Stored noise as shards: each is encoded by itself, written whole or not at all, and told by its checksum.

Beside a finished shard lies `noise-00000.json`: how many images it has seen, the sum of squares of their noise, and the
shard's entry. So work that was killed goes on with the shards that are missing, and sums need no second look.
"""

import fcntl
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nfm.artifacts import atomic_path, read_json, write_json
from nfm.errors import InputError
from nfm.store import checked, entry_of


@dataclass(frozen=True)
class Shard:
    """A part of the images, and how much of their noise is stored.

    Attributes:
        number: Its place among the shards.
        rows: The images' rows in the data set.
        images: How many of them, from the first, have noise stored.
        draws: Stored draws of each of those.
    """

    number: int
    rows: range
    images: int
    draws: int

    @property
    def name(self) -> str:
        """Name of the shard's files, without ending."""
        return f"noise-{self.number:05}"

    def path(self, folder: Path) -> Path:
        """Returns the file with the noise, raw float16 of (images, draws, C, H, W)."""
        return folder / f"{self.name}.f16"

    def sidecar(self, folder: Path) -> Path:
        """Returns the file that says that the shard is finished."""
        return folder / f"{self.name}.json"


def plan_shards(count: int, draws: int, size: int, *, stored: tuple[int, int], shard_bytes: int) -> list[Shard]:
    """Divides images among shards.

    Arguments:
        count: Images, N.
        draws: Draws that are encoded of each image, K.
        size: Values in a draw.
        stored: From the first, how many images are stored, and how many draws of each.
        shard_bytes: Size that a shard of all draws does not exceed, at least one image, bytes.
    """
    step, (images, kept) = max(1, shard_bytes // (2 * draws * size)), stored
    rows = [range(first, min(first + step, count)) for first in range(0, count, step)]
    return [Shard(i, part, min(len(part), max(0, images - part.start)), kept) for i, part in enumerate(rows)]


def write_shard(folder: Path, shard: Shard, batches: Iterable[Tensor]) -> None:
    """Writes a shard, then its sidecar.

    Arguments:
        folder: Where to write.
        shard: What to write.
        batches: Noise of all the shard's images, in order, with shapes (B, K, C, H, W).

    Raises:
        InputError: The disk is full, or the noise is not finite in float16.
    """
    path, seen, squares = shard.path(folder), 0, 0.0
    for stale in folder.glob(f".{shard.name}.*.tmp"):
        stale.unlink()  # what a killed process was writing
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for z in batches:
            squares += z.double().square().sum().item()
            half = z[: max(0, shard.images - seen), : shard.draws].half().cpu().numpy()
            if not (np.isfinite(half).all() and math.isfinite(squares)):
                raise InputError(
                    f"the teacher's noise of the images {shard.rows.start + seen} and on is not finite in float16, "
                    "expected numbers of the size of 1; train the teacher with a lower lr"
                )
            file.write(half.tobytes())
            seen += len(z)
    write_json(shard.sidecar(folder), {**entry_of(path), "count": shard.images, "seen": seen, "squares": squares})


@contextmanager
def locked(folder: Path, shard: Shard) -> Iterator[None]:
    """Holds a shard against other processes, of this machine or of another that has the folder mounted."""
    with (folder / f".{shard.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_sidecar(folder: Path, shard: Shard, *, verify: bool) -> dict[str, Any] | None:
    """Returns a finished shard's sidecar; None if it is not finished or not what it was.

    Arguments:
        folder: Where the shard lies.
        shard: Which one.
        verify: Whether to compare the SHA-256 too; a shard that differs loses its sidecar.
    """
    path = shard.sidecar(folder)
    if not path.is_file():
        return None
    try:
        entry = read_json(path)
        checked(folder, entry, verify, "")
    except InputError:
        path.unlink()
        return None
    return entry
