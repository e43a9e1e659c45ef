"""Arrays in several raw files, the shards: each has an entry with its size and SHA-256, and is mapped into memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfm.artifacts import sha256
from nfm.errors import InputError


class Rows:
    """The rows of an array that lies in one or more shards.

    Attributes:
        shape: Of the whole array, (N, *row).

        counts: Rows of each shard.

    Arguments:
        counts: Rows of each shard, at least one shard, in the order of the rows.
        row: Shape of a row.
        dtype: numpy's type of a value.
        shard: Gives the array of the shard of a number, with shape (n, *row).
    """

    def __init__(
        self, counts: Sequence[int], row: tuple[int, ...], dtype: Any, shard: Callable[[int], np.ndarray]
    ) -> None:
        self.counts, self._dtype, self._shard = tuple(counts), np.dtype(dtype), shard
        ends = np.cumsum(self.counts)
        self._starts = [0, *ends[:-1].tolist()]
        self.shape = (int(ends[-1]), *row)

    @staticmethod
    def of(shards: Sequence[Any]) -> "Rows":
        """Returns the rows of arrays with shapes (n, *row)."""
        # Plain arrays over the mapped pages: numpy's memmap class is slow to index.
        arrays = [np.asarray(shard) for shard in shards]
        first = arrays[0]
        return Rows([len(array) for array in arrays], first.shape[1:], first.dtype, arrays.__getitem__)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray, *columns: np.ndarray) -> np.ndarray:
        """Returns a copy of array[rows, *columns], all with shape (B,)."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"index runs from {rows.min()} to {rows.max()}, expected 0 to {len(self) - 1}")
        if len(self.counts) == 1:
            return self._shard(0)[(rows, *columns)]
        taken = np.empty((len(rows), *self.shape[1 + len(columns) :]), self._dtype)
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for k in np.unique(shard):
            here = shard == k
            index = (rows[here] - self._starts[k], *[column[here] for column in columns])
            taken[here] = self._shard(int(k))[index]
        return taken


def entry_of(path: Path) -> dict[str, Any]:
    """Returns what a folder's list of files says of one: "file", "bytes" and "sha256"."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def checked(folder: Path, entry: dict[str, Any], verify: bool, again: str) -> Path:
    """Returns the file that an entry names.

    Arguments:
        folder: Where the file lies.
        entry: What `entry_of` returned when it was written.
        verify: Whether to compare the SHA-256 too, and not only the size.
        again: The way out, for the message.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = folder / entry["file"]
    if not path.is_file():
        raise InputError(f"{path} is missing; {again}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise InputError(f"{path} holds {size} bytes, expected {entry['bytes']}; {again}")
    if verify and sha256(path) != entry["sha256"]:
        raise InputError(f"{path} has another SHA-256 than its manifest names; {again}")
    return path


def open_rows(
    folder: Path, entries: Sequence[dict[str, Any]], dtype: Any, row: tuple[int, ...], *, verify: bool, again: str
) -> Rows:
    """Maps the shards that entries name; an entry also has its number of rows, "count".

    Arguments:
        folder: Where the shards lie.
        entries: Of the shards, in the order of their rows.
        dtype: numpy's type of a value.
        row: Shape of a row.
        verify: Whether to compare the SHA-256 too, and not only the sizes.
        again: The way out, for messages.

    Raises:
        InputError: A file is missing or damaged.
    """
    paths = [checked(folder, entry, verify, again) for entry in entries]
    shapes = [(entry["count"], *row) for entry in entries]
    return Rows.of([np.memmap(path, dtype, "r", shape=shape) for path, shape in zip(paths, shapes, strict=True)])
