"""Small image files and archives for the tests of data sets."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def png(value: int, side: int = 8, mode: str = "L") -> bytes:
    """The content of an image file of one grey."""
    file = io.BytesIO()
    Image.new("L", (side, side), value).convert(mode).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
