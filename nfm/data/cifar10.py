"""The python archive of CIFAR-10, whose files are pickles: read without running what they name."""

import hashlib
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfm.errors import InputError

MD5 = "c58f30108f718f92721af3b95e74349a"  # of cifar-10-python.tar.gz, https://www.cs.toronto.edu/~kriz/cifar.html
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {
    "train": tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
    "test": ("cifar-10-batches-py/test_batch",),
}
WAY_OUT = "fetch cifar-10-python.tar.gz again"


def read_cifar10(archive: Path, md5: str = MD5) -> dict[str, tuple[Tensor, Tensor]]:
    """Reads both splits of CIFAR-10.

    The archive must be the published one, as MNIST's files must: images of one's own are read from a
    folder.

    Arguments:
        archive: cifar-10-python.tar.gz.
        md5: Checksum that it must have, in hexadecimal.

    Returns:
        By split, "train" and "test", images as uint8 with shape (N, 3, 32, 32), and labels as int64
        with shape (N,).

    Raises:
        InputError: The archive is missing, another one, truncated, or holds something else than
            arrays, numbers and bytes.
    """
    if not archive.is_file():
        raise InputError(f"data.archive is {archive}, which is no file; put cifar-10-python.tar.gz there")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise InputError(f"{archive} has the MD5 {found}, expected {md5}; {WAY_OUT}")
    wanted = {name for names in BATCHES.values() for name in names}
    batches = {}
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                if member.name in wanted and (file := opened.extractfile(member)):
                    batches[member.name] = _batch(file.read(), f"{archive}: {member.name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{archive} does not unpack ({error}); {WAY_OUT}") from error
    for name in sorted(wanted - batches.keys()):
        raise InputError(f"{archive} holds no {name}; {WAY_OUT}")
    return {split: _joined([batches[name] for name in names]) for split, names in BATCHES.items()}


class _Arrays(pickle.Unpickler):
    """Builds arrays, numbers, bytes and containers of them, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "_codecs", "encode":
                return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor bytes")


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 pickles bytes as for Python 2; any other encoding would be looked up by import."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _batch(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    try:
        batch = _Arrays(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(f"{name} cannot be read as arrays and bytes ({error}); {WAY_OUT}") from error
    pixels, labels = (batch.get(key) for key in (b"data", b"labels")) if isinstance(batch, dict) else (None, None)
    right = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and isinstance(labels, list)
        and pixels.shape == (len(labels), 3 * 32 * 32)
        and all(isinstance(label, int) and 0 <= label < len(CLASSES) for label in labels)
    )
    if not right:
        raise InputError(f"{name} holds no uint8 `data` of shape (N, 3072) with N `labels` from 0 to 9; {WAY_OUT}")
    return torch.from_numpy(pixels).reshape(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)
