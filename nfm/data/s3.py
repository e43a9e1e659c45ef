"""Objects in an S3 store as files in a local folder: fetched in parallel, checked, and only once."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nfm.artifacts import read_json, sha256, write_json
from nfm.data.space import require_space
from nfm.errors import InputError

THREADS = 16
TRIES = 3
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Item:
    """An object: its key, its size in bytes, its entity tag, and the file that it becomes."""

    key: str
    size: int
    etag: str
    path: Path


def fetch(url: str, cache: Path, key: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """Brings an object, or all objects below a prefix, to a folder of the cache.

    A file that is there with the object's size and checksum is left alone, so that an interrupted
    call goes on; a file whose object is gone is removed. The checksum is the MD5 that the store
    names; for an object uploaded in parts or encrypted by a key of one's own, whose tag is no MD5, it
    is the SHA-256 noted when it arrived. The endpoint, the region and the credentials come from the
    environment, as boto3 reads them.

    Arguments:
        url: s3://bucket/prefix or s3://bucket/key.
        cache: Folder for mirrors, each named by a hash of the endpoint and the url.
        key: Name in the params of the url, for messages.
        say: Receives lines on the space needed and on the progress.

    Returns:
        The folder of the prefix, or the file of the single object.

    Raises:
        InputError: There is no such object, the store refuses or cannot be reached, an object arrives
            damaged, or the disk is too small.
    """
    bucket, prefix = named(url, key)
    with in_sentences(url, key):
        client = open_client()
        name = hashlib.sha256(f"{client.meta.endpoint_url} {bucket}/{prefix.rstrip('/')}".encode()).hexdigest()[:16]
        folder = cache / name
        items, single = _list(client, bucket, prefix, folder)
        if not items:
            raise InputError(f"{key} is {url}, where there is no object; put the images there or name another prefix")
        _remove_others(folder, {item.path for item in items})
        missing = sum(item.size for item in items if not _has_size(item))
        say(require_space(folder, missing, f"{len(items):,} objects of {url}"))
        _bring_all(client, bucket, items, url, say)
    return items[0].path if single else folder


def named(url: str, key: str) -> tuple[str, str]:
    """Returns bucket and prefix of an url.

    Raises:
        InputError: It names no bucket, or boto3 is missing.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{key} is {url!r}, expected s3://bucket/prefix")
    if importlib.util.find_spec("boto3") is None:
        raise InputError(f"{key} is {url}, which needs boto3; install nfm with the extra `pipeline`")
    return bucket, prefix


def open_client() -> Any:
    """Returns boto3's client for S3; endpoint, region and credentials come from the environment."""
    from boto3.session import Session
    from botocore.config import Config

    retries = {"mode": "standard", "max_attempts": TRIES}
    # Not boto3.client, whose session keeps the credentials that it found first.
    return Session().client("s3", config=Config(max_pool_connections=THREADS, retries=retries))  # type: ignore[arg-type]


@contextmanager
def in_sentences(url: str, key: str) -> Iterator[None]:
    """Turns boto3's errors into one sentence each."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except InputError:
        raise
    except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: an endpoint that is no address
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{key} is {url}, which the store does not give ({reason}); mend the name, the credentials or "
            "AWS_ENDPOINT_URL and run the same command again, what has arrived is kept"
        ) from error


def _list(client: Any, bucket: str, prefix: str, folder: Path) -> tuple[list[Item], bool]:
    """Lists what lies below a prefix, or else the one object of that name; hidden ones are passed over."""
    below = f"{prefix.rstrip('/')}/" if prefix else ""
    items = [
        Item(entry["Key"], entry["Size"], entry["ETag"].strip('"'), folder / name)
        for entry in _entries(client, bucket, below)
        if (name := _file_name(entry["Key"], below))
    ]
    if items or not prefix or prefix.endswith("/"):
        return items, False
    single = [entry for entry in _entries(client, bucket, prefix) if entry["Key"] == prefix]
    name = prefix.rpartition("/")[2]
    return [Item(prefix, entry["Size"], entry["ETag"].strip('"'), folder / name) for entry in single], True


def _entries(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", [])


def _file_name(key: str, below: str) -> str | None:
    """Returns a key's path below the prefix; None for a folder's mark and for hidden names."""
    name = key[len(below) :]
    parts = PurePosixPath(name).parts
    if not name or name.endswith("/"):
        return None
    if "/".join(parts) != name or ".." in parts or "\0" in name:
        raise InputError(f"the object {key!r} has a key that is no file's path; rename it or take it out")
    return None if any(part.startswith(".") for part in parts) else name


def _remove_others(folder: Path, wanted: set[Path]) -> None:
    """Removes the files whose objects are gone, with their notes, and folders that are empty then."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if not {path, Path(parent, re.sub(r"^\.(.*)\.(s3|part)$", r"\1", name))} & wanted:
                path.unlink()
        if not os.listdir(parent):
            os.rmdir(parent)


def _bring_all(client: Any, bucket: str, items: list[Item], url: str, say: Callable[[str], None]) -> None:
    step = max(1, len(items) // 10)
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for first in range(0, len(items), step):
                batch = items[first : first + step]
                list(pool.map(partial(_bring, client, bucket), batch))
                say(f"{url}: {first + len(batch):,} of {len(items):,} objects are here")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bring(client: Any, bucket: str, item: Item) -> None:
    from botocore.exceptions import BotoCoreError

    if _is_here(item):
        return
    item.path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            if _download(client, bucket, item):
                return
        except BotoCoreError:
            if attempt == TRIES - 1:
                raise
    raise InputError(
        f"s3://{bucket}/{item.key} arrived {TRIES} times with another checksum or size than the store names; "
        "upload it again, or run the same command again if it has just been replaced"
    )


def _download(client: Any, bucket: str, item: Item) -> bool:
    """Fetches an object; returns whether it arrived whole, and leaves nothing if not."""
    answer = client.get_object(Bucket=bucket, Key=item.key)
    md5, secure, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    part, note = _beside(item.path, "part"), _beside(item.path, "s3")
    try:
        with part.open("wb") as file:
            for chunk in answer["Body"].iter_chunks(CHUNK):
                md5.update(chunk)
                secure.update(chunk)
                size += file.write(chunk)
        plain = re.fullmatch("[0-9a-f]{32}", item.etag) and answer.get("ServerSideEncryption", "AES256") == "AES256"
        if size != item.size or answer["ETag"].strip('"') != item.etag or (plain and md5.hexdigest() != item.etag):
            return False
        note.unlink(missing_ok=True)
        part.replace(item.path)
        if not plain:
            write_json(note, {"etag": item.etag, "sha256": secure.hexdigest()})
        return True
    finally:
        part.unlink(missing_ok=True)


def _has_size(item: Item) -> bool:
    return item.path.is_file() and item.path.stat().st_size == item.size


def _is_here(item: Item) -> bool:
    if not _has_size(item):
        return False
    note = _beside(item.path, "s3")
    if note.is_file():
        noted = read_json(note)
        return noted["etag"] == item.etag and noted["sha256"] == sha256(item.path)
    with item.path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == item.etag


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")
