"""Whether data have changed: a digest of what lies there, without reading an image and without torch."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfm.config import DataSection, FolderData, ImagenetData, LatentsData
from nfm.errors import InputError


@dataclass(frozen=True)
class Listing:
    """What lies where a data section points.

    Attributes:
        digest: Of names, sizes and times of files, or of keys, sizes and entity tags of objects, in hexadecimal.
        count: Files or objects.
        bytes: Of all together.
    """

    digest: str
    count: int
    bytes: int


def watched(section: DataSection) -> tuple[str, dict[str, str]] | None:
    """Returns the key of the params that tells versions of the data apart, and the places that may change, by key.

    Returns:
        None for a published data set, whose files are held against checksums: nothing can be new there.
    """
    key, images = ("data.images", section.images) if isinstance(section, LatentsData) else ("data", section)
    match images:
        case FolderData():
            return f"{key}.version", {f"{key}.folder": images.folder}
        case ImagenetData():
            return f"{key}.version", {f"{key}.train": images.train, f"{key}.test": images.test}
    return None


def list_data(places: dict[str, str], root: Path) -> Listing:
    """Lists what lies in some places.

    A file that was written anew with the same bytes counts as another one: its images are then prepared again, and
    where they are the same, nothing that follows runs.

    Arguments:
        places: Folders relative to the root, or s3:// prefixes, by their key in the params.
        root: The project's folder.

    Raises:
        InputError: A place is no folder or holds nothing, or a store does not answer.
    """
    digest = hashlib.sha256()
    count = total = 0
    for key, place in places.items():
        entries = list(_objects(place, key) if place.startswith("s3://") else _files(root / place, key))
        if not entries:
            raise InputError(f"{key} is {place}, which holds no file; put images there or name another one")
        for name, size, mark in sorted(entries):
            digest.update(f"{key}\0{name}\0{size}\0{mark}\n".encode("utf-8", "surrogateescape"))
            total += size
        count += len(entries)
    return Listing(digest.hexdigest(), count, total)


def _files(folder: Path, key: str) -> Iterator[tuple[str, int, str]]:
    """Gives path, size and time of every file below a folder, hidden ones left out as `prepare` leaves them out."""
    if not folder.is_dir():
        raise InputError(f"{key} is {folder}, which is no folder; name one that exists")
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    status = entry.stat()
                    yield os.path.relpath(entry.path, folder), status.st_size, str(status.st_mtime_ns)


def _objects(url: str, key: str) -> Iterator[tuple[str, int, str]]:
    """Gives key, size and entity tag of every object below a prefix; as boto3 finds endpoint and credentials."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    with _sentences(url, key):
        from boto3.session import Session

        pages = Session().client("s3").get_paginator("list_objects_v2")
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        for page in pages.paginate(Bucket=bucket, Prefix=below):
            for item in page.get("Contents", []):
                name = item["Key"][len(below) :]
                if name and not any(part.startswith(".") for part in name.split("/")):
                    yield name, item["Size"], item["ETag"]


@contextmanager
def _sentences(url: str, key: str) -> Iterator[None]:
    """Turns what goes wrong with a store into one sentence each."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise InputError(f"{key} is {url}, which needs boto3; install nfm with the extra `pipeline`") from error
    try:
        yield
    except (BotoCoreError, ClientError, ValueError) as error:
        reason: Any = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{key} is {url}, which the store does not list ({reason}); mend the name, the credentials or "
            "AWS_ENDPOINT_URL and run the same command again"
        ) from error
