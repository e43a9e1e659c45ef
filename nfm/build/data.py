"""The data set that the `data` section names."""

from pathlib import Path

from nfm.config import DataSection, DigitsData, FolderData, MnistData
from nfm.data.source import Source, digits, folder, mnist


def make_source(section: DataSection, root: Path) -> Source:
    """Reads the data set; folders are relative to the project's root."""
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
