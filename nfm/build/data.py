"""The data set that the `data` section names."""

from pathlib import Path

from nfm.config import DataSection, DigitsData, FolderData, MnistData
from nfm.data.source import Source, digits, folder, mnist, with_validation


def make_source(section: DataSection, root: Path) -> Source:
    """Reads the data set, its test split as `validation` asks; folders are relative to the project's root."""
    source = _read(section, root)
    if section.validation is None:
        return source
    return with_validation(source, section.validation, section.seed)


def _read(section: DataSection, root: Path) -> Source:
    match section:
        case DigitsData():
            return digits(test_fraction=section.test_fraction, seed=section.seed)
        case MnistData():
            return mnist(root / section.folder, size=section.size, download=section.download)
        case FolderData():
            return folder(
                root / section.folder,
                size=section.size,
                channels=section.channels,
                filter=section.filter,
                test_fraction=section.test_fraction,
                seed=section.seed,
            )
