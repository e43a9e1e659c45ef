"""Image files in class folders or in tar shards: listed first, read when asked for."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nfm.data.examples import BLOCK, Examples
from nfm.data.images import ENDINGS, decode_image, is_image
from nfm.errors import InputError


@dataclass(frozen=True)
class Files:
    """Image files that are listed and not yet read.

    Attributes:
        classes: Names in the order of the labels; a single one stands for images without labels.
        label: Classes as int64, with shape (N,).
        stamps: One number per file that changes when the file does, int64 with shape (N,).
        name: Of a row's file, for messages.
        content: Of a row's file.
    """

    classes: tuple[str, ...]
    label: Tensor
    stamps: Tensor
    name: Callable[[int], str]
    content: Callable[[int], bytes]

    def examples(self, size: int, channels: int, filter: str, cmyk: bool = False) -> Examples:
        """Returns the images, decoded on as many threads as there are cores; see `decode_image`."""

        def image(row: int) -> Tensor:
            try:
                content = self.content(row)
            except OSError as error:
                raise InputError(f"{self.name(row)} cannot be read ({error}); run the same command again") from error
            return decode_image(content, self.name(row), size, channels, filter, cmyk)

        def read(index: Tensor) -> Iterator[Tensor]:
            # PIL lets go of Python's lock while it decodes and resizes.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for rows in index.split(BLOCK):
                    yield torch.stack(list(pool.map(image, rows.tolist())))

        return Examples(self.stamps, self.label if len(self.classes) > 1 else None, read)


def stamp(*parts: object) -> int:
    """Returns 64 bits, signed, of a hash of what tells one version of a file from another."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def list_folder(folder: Path, minimum: int) -> Files:
    """Lists a folder with one sub-folder of images per class, classes and files sorted by name.

    Hidden entries and files without an image's ending are passed over.

    Arguments:
        folder: One that exists.
        minimum: Number of images that a class has at least.

    Raises:
        InputError: There is no class, a class with too few images, or an image outside the classes.
    """
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if is_image(entry.name) and entry.is_file():
            raise InputError(f"{entry.path} lies outside the classes; move it into its class's folder")
    classes = tuple(entry.name for entry in visible if entry.is_dir())
    if not classes:
        raise InputError(
            f"{folder} holds no class; expected one sub-folder of images per class, or a single one with all images"
        )
    names: list[str] = []
    stamps = array("q")
    counts = []
    for of_class in classes:
        before = len(names)
        for name, number in _images_in(folder / of_class, minimum):
            names.append(name)
            stamps.append(number)
        counts.append(len(names) - before)
    label = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))

    def path(row: int) -> str:
        return os.path.join(folder, classes[int(label[row])], names[row])

    def content(row: int) -> bytes:
        with open(path(row), "rb") as file:
            return file.read()

    return Files(classes, label, torch.frombuffer(stamps, dtype=torch.int64), path, content)


def _images_in(folder: Path, minimum: int) -> list[tuple[str, int]]:
    """Returns the name and the stamp of each image in a class's folder."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and entry.is_file():
                status = entry.stat()
                found.append((entry.name, stamp(folder.name, entry.name, status.st_size, status.st_mtime_ns)))
    if len(found) < minimum:
        raise InputError(
            f"class {folder.name!r} in {folder.parent} holds {len(found)} images, expected at "
            f"least {minimum} with one of the endings {' '.join(sorted(ENDINGS))}"
        )
    return sorted(found)
