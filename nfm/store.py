"""Arrays in several raw files, the shards: each has an entry with its size and SHA-256, and is mapped into memory."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfm.artifacts import sha256
from nfm.errors import InputError

Index = tuple[np.ndarray, ...]


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
        for k, here, index in self._by_shard(rows, *columns):
            taken[here] = self._shard(k)[index]
        return taken

    def expect(self, rows: np.ndarray, *columns: np.ndarray) -> None:
        """Says what will be taken, so that what is on a disk can be read meanwhile; it need not be taken."""

    def _by_shard(self, rows: np.ndarray, *columns: np.ndarray) -> Iterator[tuple[int, np.ndarray, Index]]:
        """Yields each shard that is asked, where among the rows it is, and the index in the shard."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        for k in np.unique(shard):
            here = shard == k
            yield int(k), here, (rows[here] - self._starts[k], *[column[here] for column in columns])


class MappedRows(Rows):
    """The rows of an array in files, mapped into memory.

    Arguments:
        paths: Of the shards, in the order of their rows.
        counts: Rows of each shard.
        row: Shape of a row.
        dtype: numpy's type of a value.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], row: tuple[int, ...], dtype: Any) -> None:
        self._maps = [_mapped(path) for path in paths]
        # Plain arrays over the mapped pages: numpy's memmap class is slow to index.
        arrays = [
            np.frombuffer(pages, dtype).reshape(count, *row) for pages, count in zip(self._maps, counts, strict=True)
        ]
        super().__init__(counts, row, dtype, arrays.__getitem__)

    def expect(self, rows: np.ndarray, *columns: np.ndarray) -> None:
        # Row by row the kernel would wait for the disk as often, and read what lies around each; so it is told all.
        for k, _, index in self._by_shard(rows, *columns):
            strides, pages = self._shard(k).strides[: len(index)], self._maps[k]
            starts = sum(part * stride for part, stride in zip(index, strides, strict=True))
            for start in np.asarray(starts).tolist():
                first = start - start % mmap.PAGESIZE
                pages.madvise(mmap.MADV_WILLNEED, first, min(start + strides[-1], len(pages)) - first)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


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
    return MappedRows(paths, [entry["count"] for entry in entries], row, dtype)
