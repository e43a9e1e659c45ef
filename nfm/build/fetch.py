"""Files from elsewhere, brought and checked by a command of their own: stages never use the network."""

import hashlib
import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from nfm.artifacts import atomic_path, sha256
from nfm.config import INCEPTION, Inception
from nfm.errors import InputError

CHUNK = 2**20
TIMEOUT = 60  # seconds without an answer


def fetch_inception(section: Inception | None, root: Path) -> str:
    """Brings Inception's weights to inputs/inception.pth, from a path relative to the root or from a URL.

    The checksum is taken as the bytes come; only a file with the right one takes its place.

    Returns:
        What was done, one sentence.

    Raises:
        InputError: The source cannot be read, or has another checksum.
    """
    if section is None:
        return "nothing to fetch: evaluate.inception is null; it may name the source and sha256 of Inception's weights"
    target = root / INCEPTION
    if target.is_file() and sha256(target) == section.sha256:
        return f"{INCEPTION} is there, with the SHA-256 that evaluate.inception names"
    found, size = hashlib.sha256(), 0
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        for chunk in _read(section.source, root):
            found.update(chunk)
            size += file.write(chunk)
        if found.hexdigest() != section.sha256:
            raise InputError(
                f"evaluate.inception.source {section.source} gave {size} bytes of SHA-256 {found.hexdigest()}, "
                f"evaluate.inception.sha256 is {section.sha256}; correct either and run `python -m nfm fetch` again"
            )
    return f"{INCEPTION} is fetched from {section.source}, {size} bytes with the SHA-256 that evaluate.inception names"


def _read(source: str, root: Path) -> Iterator[bytes]:
    """Gives the bytes of a path or URL."""
    try:
        with (
            urllib.request.urlopen(source, timeout=TIMEOUT)
            if source.startswith(("http://", "https://"))
            else (root / source).open("rb")
        ) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(
            f"evaluate.inception.source {source} cannot be read ({error}); name a file or a URL that answers, "
            "or put the file there by hand"
        ) from error
