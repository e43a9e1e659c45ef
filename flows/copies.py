"""The copies of a stage's outputs, in the folder, in DVC's cache and in its remote, held against their MD5."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.output import Output


def copies(output: "Output") -> Iterator[tuple[Path, Path, str]]:
    """Yields, for every file of an output: its path, the path of one copy of it, the copy's MD5.

    The copies are the file itself and the one in the cache. A folder adds its list of files, which
    is in the cache alone; without that list its files cannot be named.
    """
    value = output.hash_info.value if output.hash_info else None
    if value is None or output.hash_name != "md5":
        return
    root = Path(output.fs_path)
    entries: list[tuple[tuple[str, ...], str]] = [((), value)]
    if value.endswith(".dir"):
        yield root, Path(output.cache.oid_to_path(value)), value.removesuffix(".dir")
        tree: Any = output.get_obj()
        entries = [(key, entry.value) for key, _, entry in tree or ()]
    for key, md5 in entries:
        path = root.joinpath(*key)
        yield path, path, md5
        if output.use_cache:
            yield path, Path(output.cache.oid_to_path(md5)), md5


def md5_there(fs: Any, path: str) -> str | None:
    """Returns the MD5 of a file in the remote, without ".dir" for a list of files; None where there is none."""
    if not fs.exists(path):
        return None
    with fs.open(path, "rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest() + ".dir" * path.endswith(".dir")


def is_intact(path: Path, md5: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == md5
    except OSError:
        return False
