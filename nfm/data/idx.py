"""The IDX file format, and the four files of MNIST."""

import gzip
import hashlib
import struct
import urllib.request
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfm.artifacts import atomic_path
from nfm.errors import InputError

# SHA-256 of each file unpacked, so that it does not matter which program packed it.
MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
WAY_OUT = "delete it and set data.download to true, or put a good copy there"


def read_mnist(folder: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    """Reads one split of MNIST, each file plain or with the ending .gz.

    Arguments:
        folder: Where the four files are.
        split: "train" or "t10k".
        download: Whether to fetch missing files into the folder.

    Returns:
        Images as uint8 with shape (N, 28, 28) and labels as int64 with shape (N,).

    Raises:
        InputError: A file is missing, damaged, or not the published one.
    """
    images = _read_checked(folder, f"{split}-images-idx3-ubyte", download)
    labels = _read_checked(folder, f"{split}-labels-idx1-ubyte", download)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(
            f"{folder} holds {split} images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}, expected (N, height, width) and (N,)"
        )
    return images, labels.long()


def read_idx(path: Path) -> Tensor:
    """Reads an IDX file of unsigned bytes, plain or packed by gzip.

    The file is two zero bytes, the type (8 for unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, and the values, the last dimension running fastest.

    Raises:
        InputError: The file does not unpack, or its header or length is not that of such a file.
    """
    return _parse(_unpack(path), path)


def _read_checked(folder: Path, name: str, download: bool) -> Tensor:
    path = _find(folder, name, download)
    content = _unpack(path)
    tensor = _parse(content, path)
    if hashlib.sha256(content).hexdigest() != MNIST[name]:
        raise InputError(f"{path} unpacks to something other than MNIST's {name} (SHA-256); {WAY_OUT}")
    return tensor


def _find(folder: Path, name: str, download: bool) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    if not download:
        raise InputError(
            f"{folder} holds neither {name} nor {name}.gz; put MNIST's four files there, name "
            "their folder in data.folder, or set data.download to true"
        )
    return _download(folder / f"{name}.gz")


def _download(path: Path) -> Path:
    # torchvision keeps the list of mirrors; its own reader would add a second copy of the files.
    from torchvision.datasets import MNIST as Mirrored

    path.parent.mkdir(parents=True, exist_ok=True)
    reason = "torchvision names no mirror"
    for mirror in Mirrored.mirrors:
        try:
            with urllib.request.urlopen(f"{mirror}{path.name}", timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            reason = str(error)
            continue
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return path
    raise InputError(
        f"{path.name} could not be downloaded from any of {len(Mirrored.mirrors)} mirrors "
        f"({reason}); put MNIST's four files in {path.parent}"
    )


def _unpack(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} does not unpack ({error}); {WAY_OUT}") from error


def _parse(content: bytes, path: Path) -> Tensor:
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path} begins with the bytes {content[:4].hex(' ') or 'of no file'}, expected an IDX "
            f"file of unsigned bytes, 00 00 08 and the number of dimensions; {WAY_OUT}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(f"{path} ends inside its header, after {len(content)} bytes; {WAY_OUT}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) != start + prod(shape):
        raise InputError(
            f"{path} holds {len(content) - start} values, expected {prod(shape)} for the shape "
            f"{shape} that its header names; {WAY_OUT}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).reshape(shape)
