"""Images or latents on disk: pre-shuffled raw shards, their labels and a manifest.

A split is a folder with `images-00000.u8` and so on, the images one after the other, each in the
order (C, H, W); `labels.i64`, little-endian, unless there are no labels; and `manifest.json`. Where that
names a store, the shards lie there, each under its SHA-256, and not in the folder. Of latents
there are `latents-00000.f16` and so on, `autoencoder.safetensors`, which decodes them, and the pixels of
the first images only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfm.artifacts import read_json
from nfm.data.stream import Cache, Store, Stream
from nfm.errors import InputError
from nfm.store import Rows, checked, open_rows

FORMAT = "nfm-data-1"
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


@dataclass(frozen=True)
class Split:
    """The images of one split, or their latents, read from disk as they are asked for.

    Attributes:
        dataset: Name of the data set.
        shape: Of an image or a latent, (C, H, W).
        classes: Names in the order of the labels; empty without labels.
        count: Number of images.
        notes: How the images were made.
        autoencoder: The file that decodes latents; None for images.
        stream: Brings the shards from a store; None where they are in the folder.
    """

    dataset: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    count: int
    notes: str
    _values: Rows
    _labels: Tensor | None
    autoencoder: Path | None = None
    _visible: "Split | None" = None
    stream: Stream | None = None

    @staticmethod
    def open(folder: Path, verify: bool = False, cache: Cache | None = None) -> "Split":
        """Opens a folder that `write_splits` made.

        Arguments:
            folder: Of the split.
            verify: Whether to compare the contents' SHA-256 too, and not only the sizes; that of shards in a store is
                compared in any case.
            cache: Where shards in a store are kept while they are read; needed for such.

        Raises:
            InputError: The folder is none of ours, or a file of it is missing or damaged.
        """
        manifest = _read_manifest(folder)
        labels = None
        if manifest["labels"] is not None:
            values = np.fromfile(checked(folder, manifest["labels"], verify, AGAIN), "<i8")
            labels = torch.from_numpy(values.astype(np.int64))

        def split(part: dict[str, Any], dtype: Any, **latents: Any) -> Split:
            shape = tuple(part["shape"])
            stream, entries = None, part["shards"]
            if "store" in part:
                if cache is None:
                    raise ValueError(f"{folder} has its shards in {part['store']}, expected a cache to read them by")
                stream = Stream(Store(part["store"]), entries, dtype, shape, cache)
                values = Rows([entry["count"] for entry in entries], shape, dtype, stream)
            else:
                values = open_rows(folder, entries, dtype, shape, verify=verify, again=AGAIN)
            return Split(
                dataset=manifest["dataset"],
                shape=shape,
                classes=tuple(manifest["classes"]),
                count=len(values),
                notes=manifest["notes"],
                _values=values,
                _labels=None if labels is None else labels[: len(values)],
                stream=stream,
                **latents,
            )

        if "autoencoder" not in manifest:
            return split(manifest, np.uint8)
        decoder = checked(folder, manifest["autoencoder"], verify, AGAIN)
        return split(manifest, np.float16, autoencoder=decoder, _visible=split(manifest["pixels"], np.uint8))

    def __len__(self) -> int:
        return self.count

    @property
    def counts(self) -> tuple[int, ...]:
        """Images in each shard, in the order of the images."""
        return self._values.counts

    @property
    def visible(self) -> "Split":
        """The images as pixels: this split, or of latents the first images, whose pixels were kept."""
        return self if self._visible is None else self._visible

    def raw(self, index: Tensor) -> Tensor:
        """Returns values as stored, with shape (B, C, H, W), for row numbers (B,): uint8 pixels, float16 latents."""
        return torch.from_numpy(self._values.take(index.cpu().numpy()))

    def images(self, index: Tensor) -> Tensor:
        """Returns images on [-1, 1], or latents, as float32 with shape (B, C, H, W), for row numbers (B,)."""
        values = self.raw(index)
        return from_uint8(values) if values.dtype == torch.uint8 else values.float()

    def expect(self, index: Tensor) -> None:
        """Has a disk read rows, with numbers (B,), that will be asked for; costs about a microsecond a row."""
        self._values.expect(index.cpu().numpy())

    def labels(self, index: Tensor) -> Tensor | None:
        """Returns classes as int64, with shape (B,), for row numbers (B,); None without labels."""
        return None if self._labels is None else self._labels[index.cpu()]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; run the stage prepare first")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is no manifest of the format {FORMAT}; {AGAIN}")
    return manifest
