"""Files that other stages read: JSON and safetensors, written whole or not at all."""

import errno
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nfm.errors import InputError

# A single key: several would be written in an order, and so a file hash, that changes from run to run.
_HEADER = "nfm"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place once the block has ended well.

    The file reaches the disk before the rename, so `path` holds the old content or the new, whatever
    happens. When the block raises, the temporary file is removed and `path` stays as it was.

    Arguments:
        path: The file to write; its folder is made if need be.

    Raises:
        InputError: No space is left on the device.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise InputError(
            f"no space is left on the device while writing {path}; free some and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, an indent of 2 and a newline at the end.

    Raises:
        ValueError: The content holds a number that is not finite.
    """
    try:
        text = json.dumps(content, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(
            f"content of {path.name} is not finite or not JSON ({error}), "
            "expected finite numbers; use None for a number that is not there"
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: The file is missing or corrupt.
    """
    _require(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _corrupt(path, str(error)) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header to one safetensors file; equal content gives equal bytes.

    Arguments:
        path: The file to write.
        tensors: Tensors by name, on any device.
        header: What JSON can hold, returned by `load_tensors`.

    Raises:
        InputError: No space is left on the device.
    """
    plain = _separate(tensors)
    text = _canonical(dict(header))
    metadata = {_HEADER: _canonical({"crc32": _checksum(plain, text), "header": text})}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote.

    Returns:
        The tensors by name, on the CPU, and the header, which is empty in a file of another origin.

    Raises:
        InputError: The file is missing, truncated or altered.
    """
    _require(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = (file.metadata() or {}).get(_HEADER)
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise _corrupt(path, str(error)) from error
    if metadata is None:
        return tensors, {}
    try:
        record = json.loads(metadata)
        found, text = record["crc32"], record["header"]
        header = json.loads(text)
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, f"header: {error}") from error
    if found != _checksum(tensors, text):
        raise _corrupt(path, "the checksum differs")
    return tensors, header


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        InputError: The file is missing.
    """
    _require(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Returns the SHA-256 of an object's JSON, keys sorted, in hexadecimal."""
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moves tensors to the CPU, contiguous, no two in one storage, as safetensors wants them."""
    plain, storages = {}, set()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    # safetensors checks lengths only; a flipped bit in the weights would pass.
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        if tensor.numel():
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error)


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing; run the stage that makes it, or `dvc repro`")


def _corrupt(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is corrupt ({reason}); delete it and run the stage again")
