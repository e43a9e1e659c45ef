"""The data set that the `data` section names."""

from collections.abc import Callable
from pathlib import Path

from nfm.config import Cifar10Data, DataSection, DigitsData, FolderData, ImagenetData, MnistData
from nfm.data.examples import Source, with_mirror_images, with_validation
from nfm.data.s3 import fetch
from nfm.data.source import cifar10, digits, folder, imagenet, mnist

Say = Callable[[str], None]


def make_source(section: DataSection, root: Path, say: Say = lambda line: None) -> Source:
    """Finds the data set; paths are relative to the project's root, objects of a store are fetched.

    Validation images are split off before mirroring, so that no mirror image of one is trained on.
    """
    source = _find(section, root, say)
    if section.validation is not None:
        source = with_validation(source, section.validation, section.seed)
    if isinstance(section, Cifar10Data | FolderData | ImagenetData) and section.flips:
        source = with_mirror_images(source)
    return source


def _find(section: DataSection, root: Path, say: Say) -> Source:
    def place(path: str, key: str) -> Path:
        if not path.startswith("s3://"):
            return root / path
        return fetch(path, root / ".cache" / "s3", f"data.{key}", say)

    match section:
        case DigitsData():
            return digits(test_fraction=section.test_fraction, seed=section.seed)
        case MnistData():
            return mnist(root / section.folder, size=section.size, download=section.download)
        case Cifar10Data():
            return cifar10(place(section.archive, "archive"))
        case FolderData():
            return folder(
                place(section.folder, "folder"),
                name=(root / section.folder).resolve().name,
                size=section.size,
                channels=section.channels,
                filter=section.filter,
                test_fraction=section.test_fraction,
                seed=section.seed,
            )
        case ImagenetData():
            return imagenet(
                place(section.train, "train"),
                place(section.test, "test"),
                size=section.size,
                filter=section.filter,
            )
