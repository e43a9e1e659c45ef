"""Shards in an S3 store, read through a cache of bounded size and brought there ahead of their use."""

import fcntl
import hashlib
import os
import re
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from nfm.artifacts import sha256
from nfm.data.s3 import CHUNK, TRIES, in_sentences, named, open_client
from nfm.errors import InputError

KEY = "stream"  # of the params
THREADS = 8
PART = ".part"
WHOLE = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Store:
    """Shards in an S3 store, each under its SHA-256, so that none is ever replaced by another.

    The endpoint, the region and the credentials come from the environment, as boto3 reads them. Methods raise
    InputError where the store cannot be reached or refuses.

    Attributes:
        url: s3://bucket/prefix.
    """

    url: str

    @cached_property
    def _client(self) -> Any:
        return open_client()

    def _place(self, entry: dict[str, Any]) -> dict[str, str]:
        bucket, prefix = named(self.url, KEY)
        return {"Bucket": bucket, "Key": "/".join(filter(None, (prefix.strip("/"), entry["sha256"])))}

    def put(self, path: Path, entry: dict[str, Any]) -> None:
        """Uploads the file of an entry of `nfm.store.entry_of`, unless it is there."""
        if self.holds(entry):
            return
        from boto3.exceptions import S3UploadFailedError

        place = self._place(entry)
        with in_sentences(self.url, KEY):
            try:
                self._client.upload_file(str(path), *place.values())
            except S3UploadFailedError as error:
                raise ValueError(str(error)) from error

    def holds(self, entry: dict[str, Any]) -> bool:
        """Returns whether there is a shard of that name and size."""
        place = self._place(entry)
        from botocore.exceptions import ClientError

        with in_sentences(self.url, KEY):
            try:
                return self._client.head_object(**place)["ContentLength"] == entry["bytes"]
            except ClientError as error:
                if _is_missing(error):
                    return False
                raise

    def bring(self, entry: dict[str, Any], file: IO[bytes]) -> None:
        """Writes a shard to a file from its start.

        Raises:
            InputError: Besides, where it arrives damaged again and again.
        """
        place = self._place(entry)
        from botocore.exceptions import BotoCoreError, ClientError

        with in_sentences(self.url, KEY):
            for left in reversed(range(TRIES)):
                try:
                    if self._write(place, file, entry["bytes"]) == entry["sha256"]:
                        return
                except BotoCoreError:  # the connection breaks off
                    if not left:
                        raise
                except ClientError as error:
                    if not _is_missing(error):
                        raise
                    raise InputError(
                        f"{KEY} is {self.url}, where the object {place['Key']} is missing; `dvc repro --force prepare` "
                        "puts back what is missing"
                    ) from error
        raise InputError(
            f"{KEY} is {self.url}, whose object {place['Key']} arrived {TRIES} times with another size or SHA-256; "
            "delete it there and run `dvc repro --force prepare`, which puts it back"
        )

    def _write(self, place: dict[str, str], file: IO[bytes], size: int) -> str | None:
        """Returns the SHA-256 of what has arrived; None if that has not the size, of which no more is written."""
        digest = hashlib.sha256()
        file.seek(0)
        for chunk in self._client.get_object(**place)["Body"].iter_chunks(CHUNK):
            if file.tell() + len(chunk) > size:
                return None
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        return digest.hexdigest() if file.tell() == size else None


def _is_missing(error: Any) -> bool:
    return error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound")


@dataclass(frozen=True)
class Cache:
    """A folder of shards that the processes of a machine share, each named by its SHA-256.

    Before a shard comes, those that were used the longest ago go. A process that has mapped one of those can still
    read it, and until it lets go the disk keeps it.

    Attributes:
        folder: Made if need be.
        limit: Size of all shards together, those on their way included, bytes.
    """

    folder: Path
    limit: int

    def bring(self, store: Store, entry: dict[str, Any], keep: frozenset[str]) -> Path:
        """Returns the file of a shard, fetched unless it is there and whole.

        Arguments:
            store: Where it comes from.
            entry: Of the shard.
            keep: SHA-256 of the shards that may not go for it, which fit the limit together with it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, part = self.folder / entry["sha256"], self.folder / f".{entry['sha256']}{PART}"
        with _owned(part) as file:
            if _is_whole(path, entry):
                return path
            path.unlink(missing_ok=True)
            while not self._reserved(file, entry["bytes"], keep):
                time.sleep(0.05)  # what other processes are fetching has to arrive before it can go
            store.bring(entry, file)
            part.rename(path)
        return path

    def _reserved(self, file: IO[bytes], size: int, keep: frozenset[str]) -> bool:
        """Makes room for a file and takes it, if there is any."""
        with _locked(self.folder / ".lock"):
            found = _listed(self.folder)
            taken = sum(stat.st_size for _, stat in found)
            for path, stat in sorted(found, key=lambda shard: shard[1].st_mtime):
                if taken + size > self.limit and WHOLE.fullmatch(path.name) and path.name not in keep:
                    path.unlink()
                    taken -= stat.st_size
            if taken + size > self.limit:
                return False
            file.truncate(size)
            return True


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for one process and thread at a time."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextmanager
def _owned(part: Path) -> Iterator[IO[bytes]]:
    """Opens the file that a shard arrives in, likewise; it does not stay."""
    while True:
        with _locked(part) as file:
            if not _is_at(file, part):  # renamed or removed by the one before
                continue
            try:
                yield file
            finally:
                if _is_at(file, part):
                    part.unlink()
            return


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_whole(path: Path, entry: dict[str, Any]) -> bool:
    """Returns whether a shard is there, which counts as a use of it."""
    try:
        os.utime(path)
        return path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]
    except FileNotFoundError:  # perhaps gone this moment
        return False


def _listed(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Returns the files of a folder in which others come, are renamed and go; all of one moment."""
    while True:
        try:
            return [(path, path.stat()) for path in folder.iterdir() if not _is_abandoned(path)]
        except FileNotFoundError:
            continue


def _is_abandoned(path: Path) -> bool:
    """Removes the file of a process that was killed while a shard came, and returns whether it was one."""
    if path.suffix != PART:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


class Stream:
    """Shards of a store as arrays, mapped from the cache.

    Whoever knows what comes next says so by `expect`; until then a shard's next one is expected behind it.

    Arguments:
        store: Where they lie.
        entries: Of the shards, in the order of their rows; with their number of rows, "count".
        dtype: numpy's type of a value.
        row: Shape of a row.
        cache: Where they are kept.
    """

    def __init__(
        self, store: Store, entries: Sequence[dict[str, Any]], dtype: Any, row: tuple[int, ...], cache: Cache
    ) -> None:
        self._store, self._entries, self._dtype, self._row, self._cache = store, entries, dtype, row, cache
        self._pool = ThreadPoolExecutor(THREADS, "stream")
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._told = False

    @property
    def room(self) -> int:
        """Shards that the cache holds at a time, of the largest ones."""
        return self._cache.limit // max(entry["bytes"] for entry in self._entries)

    def __call__(self, k: int) -> np.ndarray:
        """Returns the array of shard k, with shape (count, *row); waits where it has not come yet.

        Raises:
            InputError: The store does not give it, or the cache is too small for it.
        """
        if not self._told:
            self._want([k, (k + 1) % len(self._entries)])
        elif k not in self._coming:
            self._want([k, *self._coming])
        return self._coming[k].result()

    def expect(self, shards: Sequence[int]) -> None:
        """Has shards brought, in the order of their use, as many as the cache holds, and lets go of all others."""
        self._told = True
        self._want(shards)

    def _want(self, shards: Sequence[int]) -> None:
        wanted = self._fitting(shards)
        if self._coming.keys() == wanted.keys():
            return
        for k in self._coming.keys() - wanted.keys():
            self._coming.pop(k).cancel()
        keep = frozenset(entry["sha256"] for entry in wanted.values())
        for k, entry in wanted.items():
            if k not in self._coming:
                shape = (entry["count"], *self._row)
                self._coming[k] = self._pool.submit(_mapped, self._cache, self._store, entry, keep, self._dtype, shape)

    def _fitting(self, shards: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Returns the entries of the first shards, as many as fit the cache together."""
        fitting, left = {}, self._cache.limit
        for k in dict.fromkeys(shards):
            left -= self._entries[k]["bytes"]
            if left < 0:
                break
            fitting[k] = self._entries[k]
        if not fitting:
            size = self._entries[shards[0]]["bytes"] / 1e9
            raise InputError(
                f"run.cache_gb is {self._cache.limit / 1e9:g}, less than a shard of the images, {size:.3g} GB; raise it"
            )
        return fitting


def _mapped(
    cache: Cache, store: Store, entry: dict[str, Any], keep: frozenset[str], dtype: Any, shape: tuple[int, ...]
) -> np.ndarray:
    while True:
        path = cache.bring(store, entry, keep)
        try:
            return np.asarray(np.memmap(path, dtype, "r", shape=shape))
        except FileNotFoundError:  # gone again, for another process's shard
            continue
