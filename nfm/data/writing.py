"""Splits to disk: shuffled shards one after the other, in the memory of a few images.

A split is filled in a hidden folder beside its own, such as `.train.partial`, and takes its place once
all splits are whole. `progress.json` in there names the finished shards and what each was made from, so
that an interrupted run goes on with those that are missing or out of date.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfm.artifacts import atomic_path, read_json, sha256, write_json
from nfm.data.examples import Examples, Latents, Source
from nfm.data.shards import FORMAT
from nfm.data.space import require_space
from nfm.data.stream import Store
from nfm.random import generator_for
from nfm.store import entry_of

SHARD_BYTES = 256 * 2**20
PROGRESS = "progress.json"
SUFFIXES = {torch.uint8: "u8", torch.float16: "f16"}

Say = Callable[[str], None]


def write_splits(
    folder: Path,
    source: Source,
    *,
    seed: int,
    key: str = "",
    store: Store | None = None,
    shard_bytes: int = SHARD_BYTES,
    say: Say = lambda line: None,
) -> None:
    """Writes a data set's splits `train` and `test`, each in a shuffled order.

    A reader that goes through the shards in order so sees all classes mixed. The order is a function
    of the number of images and the seed. Both folders appear when both are whole; before that,
    finished shards stay for the next call, which takes those over that were made from the same
    images with the same key.

    Arguments:
        folder: Where the splits' folders go; those that exist are replaced.
        source: The data set.
        seed: Seed of the order.
        key: Hash of what decides the pixels besides the images, such as settings and code.
        store: Where the shards to train on go, one by one, instead of to the disk; the first images' pixels stay.
        shard_bytes: Size that a shard does not exceed, at least one image, bytes.
        say: Receives lines on the space needed and on the progress.

    Raises:
        ValueError: Images, labels and classes do not fit together.
        InputError: The disk is too small or full, or an image cannot be used.
    """
    splits = {"train": source.train, "test": source.test}
    drafts = [
        _Draft(folder / name, source, examples, seed, key, shard_bytes, store if name == "train" else None)
        for name, examples in splits.items()
    ]
    shape = "x".join(map(str, source.shape))
    what = f"{len(source.train):,} images to train on and {len(source.test):,} to measure on, {shape}"
    say(require_space(folder, sum(draft.missing for draft in drafts), what))
    for draft in drafts:
        draft.fill(say)
    for draft in drafts:
        draft.publish()


@dataclass(frozen=True)
class _Shard:
    """A file to be written.

    Attributes:
        rows: Of the images in it.
        shape: Of the whole, (N, *row).
        dtype: Of a value.
        encode: From pixels to what is stored.
        key: Changes when what is to be written does.
    """

    rows: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    encode: Callable[[Tensor], Tensor]
    key: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Draft:
    """One split that is being written.

    Attributes:
        missing: Bytes that the disk still needs room for.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        examples: Examples,
        seed: int,
        key: str,
        size: int,
        store: Store | None,
    ) -> None:
        _check(examples, source.classes)
        self._folder, self._source, self._examples, self._seed = folder, source, examples, seed
        self._partial = folder.parent / f".{folder.name}.partial"
        self._order = torch.randperm(len(examples), generator=generator_for(seed))
        latents, self._key, self._size, self._store = source.latents, key, size, store
        if latents is None:
            self._data, self._pixels = self._shards("images", self._order, source.shape), {}
        else:
            self._data = self._shards("latents", self._order, latents.shape, latents)
            self._pixels = self._shards("images", self._order[: latents.keep], source.shape)
        self._all = self._data | self._pixels
        self._finished = self._kept()
        labels = 0 if examples.labels is None else 8 * len(examples)
        left = {file: self._all[file].bytes for file in self._left()}
        passing = [left.pop(file) for file in list(left) if self._stored(file)]
        self.missing = labels + sum(left.values()) + max(passing, default=0)

    def fill(self, say: Say) -> None:
        """Writes what is missing; the split is then whole, but not yet in its place."""
        self._clean()
        left, start, count = self._left(), time.monotonic(), 0
        for number, file in enumerate(left, start=1):
            shard = self._all[file]
            entry = _write(self._partial / file, map(shard.encode, self._examples.read(shard.rows)), shard)
            if self._store is not None and self._stored(file):
                self._store.put(self._partial / file, entry)
                (self._partial / file).unlink()
            self._finished[file] = entry | {"count": len(shard.rows), "key": shard.key}
            write_json(self._partial / PROGRESS, self._finished)
            count += len(shard.rows)
            if len(left) > 1:
                speed = count / max(time.monotonic() - start, 1e-9)
                say(f"{self._folder.name}: shard {number} of {len(left)}, {speed:,.0f} images/s")

    def publish(self) -> None:
        """Writes labels, what decodes latents, and the manifest, and puts the split in its place."""
        source, labels = self._source, self._examples.labels
        manifest = {
            "format": FORMAT,
            "dataset": source.name,
            "shape": list(source.shape if source.latents is None else source.latents.shape),
            "classes": list(source.classes),
            "count": len(self._order),
            "count_per_class": _count_per_class(labels, source.classes),
            "notes": source.notes,
            "seed": self._seed,
            "shards": self._entries(self._data),
            "labels": None,
        }
        if self._store is not None:
            manifest["store"] = self._store.url
        if source.latents is not None:
            path = self._partial / "autoencoder.safetensors"
            source.latents.save(path)
            manifest["autoencoder"] = entry_of(path)
            manifest["pixels"] = {"shape": list(source.shape), "shards": self._entries(self._pixels)}
        if labels is not None:
            ordered = labels[self._order]
            path = self._partial / "labels.i64"
            with atomic_path(path) as temporary:
                temporary.write_bytes(ordered.numpy().astype("<i8").tobytes())
            manifest["labels"] = entry_of(path)
        write_json(self._partial / "manifest.json", manifest)
        (self._partial / PROGRESS).unlink()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)

    def _shards(
        self, name: str, order: Tensor, shape: tuple[int, ...], latents: Latents | None = None
    ) -> dict[str, _Shard]:
        """Divides rows among files."""
        dtype, encode, key = torch.uint8, _as_they_are, f"{self._key} {shape}"
        if latents is not None:
            dtype, encode, key = torch.float16, latents.encode, f"{key} {latents.stamp}"
        each = math.prod(shape) * dtype.itemsize
        return {
            f"{name}-{number:05}.{SUFFIXES[dtype]}": _Shard(
                rows, (len(rows), *shape), dtype, encode, _key(key, self._examples.stamps[rows])
            )
            for number, rows in enumerate(order.split(max(1, self._size // each)))
        }

    def _entries(self, shards: Iterable[str]) -> list[dict[str, Any]]:
        return [{k: v for k, v in self._finished[file].items() if k != "key"} for file in shards]

    def _left(self) -> list[str]:
        return [file for file in self._all if file not in self._finished]

    def _kept(self) -> dict[str, dict[str, Any]]:
        """Returns the entries of the finished shards that are still right, by file."""
        progress = self._partial / PROGRESS
        if not progress.is_file():
            return {}
        return {
            file: entry
            for file, entry in read_json(progress).items()
            if file in self._all and entry["key"] == self._all[file].key and self._is_whole(file, entry)
        }

    def _is_whole(self, file: str, entry: dict[str, Any]) -> bool:
        if self._store is not None and self._stored(file):
            return self._store.holds(entry)
        return (self._partial / file).is_file() and sha256(self._partial / file) == entry["sha256"]

    def _stored(self, file: str) -> bool:
        """Returns whether a shard goes to the store."""
        return self._store is not None and file in self._data

    def _clean(self) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        for path in self._partial.iterdir():
            if path.name not in self._finished:
                path.unlink()
        write_json(self._partial / PROGRESS, self._finished)


def _check(examples: Examples, classes: tuple[str, ...]) -> None:
    labels = examples.labels
    if len(examples) == 0:
        raise ValueError("a split holds no image, expected one or more")
    if (labels is None) != (len(classes) == 0):
        raise ValueError(f"labels are {'missing' if labels is None else 'given'} with {len(classes)} classes")
    if labels is None:
        return
    if labels.dtype != torch.int64 or len(labels) != len(examples):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 of shape ({len(examples)},)"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}")


def _key(key: str, stamps: Tensor) -> str:
    return hashlib.sha256(key.encode() + stamps.numpy().tobytes()).hexdigest()


def _as_they_are(pixels: Tensor) -> Tensor:
    return pixels


def _write(path: Path, blocks: Iterator[Tensor], shard: _Shard) -> dict[str, Any]:
    """Writes blocks that together are a shard; returns the lines for the manifest."""
    digest, rows = hashlib.sha256(), 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for block in blocks:
            if block.dtype != shard.dtype or block.shape[1:] != shard.shape[1:]:
                raise ValueError(
                    f"images are {block.dtype} of shape {tuple(block.shape)}, expected {shard.dtype} of {shard.shape}"
                )
            content = block.contiguous().numpy().tobytes()
            digest.update(content)
            file.write(content)
            rows += len(block)
    if rows != len(shard.rows):
        raise ValueError(f"{rows} images were read, expected {len(shard.rows)}")
    return {"file": path.name, "bytes": shard.bytes, "sha256": digest.hexdigest()}


def _count_per_class(labels: Tensor | None, classes: tuple[str, ...]) -> dict[str, int]:
    if labels is None:
        return {}
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))
