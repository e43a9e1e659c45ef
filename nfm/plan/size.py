"""How large a data set is, from its section, without reading an image."""

import math
from dataclasses import dataclass
from pathlib import Path

from nfm.config import DataSection, DigitsData, FolderData, MnistData
from nfm.data.images import list_images
from nfm.errors import InputError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Size:
    """A data set's size.

    Attributes:
        shape: Of an image, (C, H, W).
        classes: Their number, 0 for none.
        train: Images to train on.
        test: Images to measure on.
    """

    shape: Shape
    classes: int
    train: int
    test: int

    @property
    def dimensions(self) -> int:
        """Numbers per image."""
        return math.prod(self.shape)


def data_size(section: DataSection, root: Path, images: int | None, classes: int | None) -> Size:
    """Returns the size of the data set that a section names.

    Arguments:
        section: The `data` section.
        root: What its folders are relative to.
        images: Number of images, in place of what is known or found; None for that.
        classes: Number of classes, likewise.

    Raises:
        InputError: It is a folder that is not there, and no number of images is given.
    """
    match section:
        case DigitsData():
            total = images or 1797
            test = math.ceil(section.test_fraction * total)
            return Size((1, 8, 8), classes or 10, total - test, test)
        case MnistData():
            return Size((1, section.size, section.size), classes or 10, images or 60_000, 10_000)
        case FolderData():
            total, known = _listed(root / section.folder, images, classes)
            test = math.ceil(section.test_fraction * total)
            return Size((section.channels, section.size, section.size), known, total - test, test)


def _listed(folder: Path, images: int | None, classes: int | None) -> tuple[int, int]:
    if images is not None and (classes is not None or not folder.is_dir()):
        return images, classes or 0
    if not folder.is_dir():
        raise InputError(f"data.folder is {folder}, which is not there to be counted; add --images N (and --classes C)")
    found = list_images(folder)
    named = len(found) if len(found) > 1 else 0
    return images or sum(map(len, found.values())), named if classes is None else classes
