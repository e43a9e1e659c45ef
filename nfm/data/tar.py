"""Images in tar shards, read where they lie: an uncompressed tar has every file at a known place."""

import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from nfm.data.files import Files, stamp
from nfm.data.images import is_image
from nfm.errors import InputError

BLOCK = 512  # bytes; a tar is made of these
WAY_OUT = "fetch it again"

Place = tuple[int, int, str | None]  # first byte and length of an image in its tar, and its class


def list_tars(folder: Path) -> Files:
    """Lists the images in all `*.tar` of a folder, shards by name and images in their order.

    The class of an image is, in this order, its folder inside the tar; the text of the file `.cls`
    beside it (WebDataset); the name of the tar where the image's begins with it (`n01440764.tar` with
    `n01440764_18.JPEG`). Without any the images have no labels.

    Raises:
        InputError: A tar is compressed, truncated or damaged, there is no image, or some have a
            class and others none.
    """
    shards = sorted(folder.glob("*.tar"))
    where, start, length, stamps = (array("q") for _ in range(4))
    number: dict[str | None, int] = {}
    code = array("q")
    for k, path in enumerate(shards):
        status = path.stat()
        for first, size, of_class in _images_in(path):
            code.append(number.setdefault(of_class, len(number)))
            for column, value in ((where, k), (start, first), (length, size)):
                column.append(value)
            stamps.append(stamp(path.name, status.st_size, status.st_mtime_ns, first))
    classes = _sorted_classes(folder, number)
    place = {name: row for row, name in enumerate(classes)}
    order = torch.tensor([place[name or ""] for name in number])

    def name(row: int) -> str:
        path = shards[where[row]]
        with path.open("rb") as file:
            file.seek(start[row] - BLOCK)
            header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        return f"{path}: {header.name}"

    def content(row: int) -> bytes:
        with shards[where[row]].open("rb") as file:
            file.seek(start[row])
            return file.read(length[row])

    label, numbers = (torch.frombuffer(column, dtype=torch.int64) for column in (code, stamps))
    return Files(classes, order[label], numbers, name, content)


def _images_in(path: Path) -> Iterator[Place]:
    classes: dict[str, str] = {}
    images: list[tuple[PurePosixPath, int, int]] = []
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                name = PurePosixPath(member.name)
                if not member.isreg() or name.name.startswith("."):
                    continue
                if is_image(name.name):
                    images.append((name, member.offset_data, member.size))
                elif name.suffix == ".cls" and (file := archive.extractfile(member)):
                    classes[_key(name)] = file.read(BLOCK).decode("utf-8", "replace").strip()
            end = archive.offset
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as an uncompressed tar ({error}); unpack it if it is compressed, else {WAY_OUT}"
        ) from error
    with path.open("rb") as file:
        file.seek(end)
        # tarfile takes a damaged or missing header for the end.
        if file.read(BLOCK) != bytes(BLOCK):
            raise InputError(f"{path} is truncated or damaged at byte {end}, where it should end or go on; {WAY_OUT}")
    for name, first, size in images:
        prefix = path.stem if name.name.startswith(f"{path.stem}_") else None
        yield first, size, name.parent.name or classes.get(_key(name)) or prefix


def _key(name: PurePosixPath) -> str:
    """WebDataset's key of a sample: the path up to the first dot of the file's name."""
    return str(name.with_name(name.name.partition(".")[0]))


def _sorted_classes(folder: Path, number: dict[str | None, int]) -> tuple[str, ...]:
    """Sorts the names, as numbers if all are; a single empty name stands for no class."""
    if not number:
        raise InputError(f"the tar shards in {folder} hold no image; expected files with an image's ending")
    if None in number and len(number) > 1:
        raise InputError(
            f"the tar shards in {folder} hold images with a class and images without; give all of them a folder "
            "or a .cls file inside the tar"
        )
    names = [name or "" for name in number]
    return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else str))
