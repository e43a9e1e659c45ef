"""Images on disk: pre-shuffled raw uint8 shards, their labels and a manifest.

A split is a folder with `images-00000.u8` and so on, the images one after the other, each in the
order (C, H, W); `labels.i64`, little-endian, unless there are no labels; and `manifest.json`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfm.artifacts import atomic_path, read_json, write_json
from nfm.errors import InputError
from nfm.random import generator_for
from nfm.store import Rows, checked, entry_of, open_rows

FORMAT = "nfm-data-1"
SHARD_BYTES = 256 * 2**20
AGAIN = "delete the folder and run the stage prepare again"


def to_uint8(images: Tensor) -> Tensor:
    """Returns images on [-1, 1] as pixels, clamp(round(127.5 (x + 1)), 0, 255), of any shape.

    Raises:
        InputError: A value is not finite; as a pixel it would pass for an honest one.
    """
    bad = int((~images.isfinite()).sum())
    if bad:
        raise InputError(
            f"{bad} of {images.numel()} values of the images are not finite: the model that made "
            "them has diverged; train it with a lower lr"
        )
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Returns pixels as float32 images on [-1, 1], u / 127.5 - 1, of any shape."""
    return pixels.float() / 127.5 - 1


def write_split(
    folder: Path,
    images: Tensor,
    labels: Tensor | None,
    *,
    dataset: str,
    classes: tuple[str, ...],
    seed: int,
    shard_bytes: int = SHARD_BYTES,
    notes: str = "",
) -> None:
    """Writes images and labels in a shuffled order; the folder appears whole or not at all.

    A reader that goes through the shards in order so sees all classes mixed.

    Arguments:
        folder: To be made; one that exists is replaced.
        images: Pixels as uint8, with shape (N, C, H, W).
        labels: Classes as int64, with shape (N,), or None.
        dataset: Name of the data set.
        classes: Names in the order of the labels; empty without labels.
        seed: Seed of the order.
        shard_bytes: Size that a shard does not exceed, at least one image, bytes.
        notes: How the images were made.

    Raises:
        ValueError: Images, labels and classes do not fit together.
        InputError: The disk is full.
    """
    _check(images, labels, classes)
    order = torch.randperm(len(images), generator=generator_for(seed))
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = {
            "format": FORMAT,
            "dataset": dataset,
            "shape": list(images.shape[1:]),
            "classes": list(classes),
            "count": len(images),
            "count_per_class": _count_per_class(labels, classes),
            "notes": notes,
            "seed": seed,
            "shards": _write_shards(partial, images, order, shard_bytes),
            "labels": None,
        }
        if labels is not None:
            content = labels[order].numpy().astype("<i8").tobytes()
            manifest["labels"] = _write(partial / "labels.i64", content)
        write_json(partial / "manifest.json", manifest)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Split:
    """The images of one split, read from disk as they are asked for.

    Attributes:
        dataset: Name of the data set.
        shape: Of an image, (C, H, W).
        classes: Names in the order of the labels; empty without labels.
        count: Number of images.
        notes: How the images were made.
    """

    dataset: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    count: int
    notes: str
    _pixels: Rows
    _labels: Tensor | None

    @staticmethod
    def open(folder: Path, verify: bool = False) -> "Split":
        """Opens a folder that `write_split` made.

        Arguments:
            folder: Of the split.
            verify: Whether to compare the contents' SHA-256 too, and not only the sizes.

        Raises:
            InputError: The folder is none of ours, or a file of it is missing or damaged.
        """
        manifest = _read_manifest(folder)
        shape = tuple(manifest["shape"])
        pixels = open_rows(folder, manifest["shards"], np.uint8, shape, verify=verify, again=AGAIN)
        labels = None
        if manifest["labels"] is not None:
            values = np.fromfile(checked(folder, manifest["labels"], verify, AGAIN), "<i8")
            labels = torch.from_numpy(values.astype(np.int64))
        return Split(
            dataset=manifest["dataset"],
            shape=shape,
            classes=tuple(manifest["classes"]),
            count=len(pixels),
            notes=manifest["notes"],
            _pixels=pixels,
            _labels=labels,
        )

    def __len__(self) -> int:
        return self.count

    def raw(self, index: Tensor) -> Tensor:
        """Returns pixels as uint8, with shape (B, C, H, W), for row numbers with shape (B,)."""
        return torch.from_numpy(self._pixels.take(index.cpu().numpy()))

    def images(self, index: Tensor) -> Tensor:
        """Returns images as float32 on [-1, 1], with shape (B, C, H, W), for row numbers (B,)."""
        return from_uint8(self.raw(index))

    def labels(self, index: Tensor) -> Tensor | None:
        """Returns classes as int64, with shape (B,), for row numbers (B,); None without labels."""
        return None if self._labels is None else self._labels[index.cpu()]


def _check(images: Tensor, labels: Tensor | None, classes: tuple[str, ...]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}, expected uint8 of shape "
            "(N, C, H, W), N at least 1"
        )
    if (labels is None) != (not classes):
        raise ValueError("labels and classes come together or not at all; pass None and ()")
    if labels is None:
        return
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 of shape ({len(images)},)"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}")


def _write_shards(folder: Path, images: Tensor, order: Tensor, shard_bytes: int) -> list[dict[str, Any]]:
    per_shard = max(1, shard_bytes // images[0].numel())
    entries = []
    for number, rows in enumerate(order.split(per_shard)):
        path = folder / f"images-{number:05}.u8"
        entries.append(_write(path, images[rows].numpy().tobytes()) | {"count": len(rows)})
    return entries


def _write(path: Path, content: bytes) -> dict[str, Any]:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return entry_of(path)


def _count_per_class(labels: Tensor | None, classes: tuple[str, ...]) -> dict[str, int]:
    if labels is None:
        return {}
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; run the stage prepare first")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is no manifest of the format {FORMAT}; {AGAIN}")
    return manifest
