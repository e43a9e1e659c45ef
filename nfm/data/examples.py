"""Data sets that are read as they are asked for: labels at hand, pixels on demand."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nfm.errors import InputError
from nfm.random import generator_for

BLOCK = 256  # images read at once
VALIDATION = 1  # stream of the choice of validation images; that of the test images has no counter
LIMIT = 2  # likewise of the images that are kept under a limit


@dataclass(frozen=True)
class Examples:
    """The images of one split, read as they are asked for, and their labels.

    Attributes:
        stamps: One number per image that changes when the image does, int64 with shape (N,).
        labels: Classes as int64, with shape (N,), or None for images without labels.
        read: Yields the images of row numbers with shape (B,), in their order and in blocks of some
            size b, as uint8 with shape (b, C, H, W).
    """

    stamps: Tensor
    labels: Tensor | None
    read: Callable[[Tensor], Iterator[Tensor]]

    @staticmethod
    def of(images: Tensor, labels: Tensor | None) -> "Examples":
        """Returns images that are in memory, uint8 with shape (N, C, H, W)."""
        stamps = torch.tensor([zlib.crc32(image) for image in images.flatten(1).numpy()], dtype=torch.int64)
        return Examples(stamps, labels, lambda index: (images[rows] for rows in index.split(BLOCK)))

    def __len__(self) -> int:
        return len(self.stamps)

    def images(self) -> Tensor:
        """Returns all images at once, with shape (N, C, H, W), which fits memory for small sets only."""
        return torch.cat(list(self.read(torch.arange(len(self)))))

    def subset(self, rows: Tensor) -> "Examples":
        """Returns the images of these row numbers, with shape (M,)."""
        labels = None if self.labels is None else self.labels[rows]
        return Examples(self.stamps[rows], labels, lambda index: self.read(rows[index]))

    def mirrored(self) -> "Examples":
        """Returns 2N images: row i is the image, row N + i its mirror image, left and right exchanged.

        A mirror image in a row of its own gets its own noise from a coupling, which a flip at
        training time would tear apart.
        """
        count = len(self)

        def read(index: Tensor) -> Iterator[Tensor]:
            turned = index >= count
            for block in self.read(index % count):
                turn, turned = turned[: len(block)], turned[len(block) :]
                yield torch.where(turn[:, None, None, None], block.flip(-1), block)

        labels = None if self.labels is None else self.labels.repeat(2)
        return Examples(torch.cat([self.stamps, ~self.stamps]), labels, read)


@dataclass(frozen=True)
class Latents:
    """What is stored in the place of images.

    Attributes:
        shape: Of a latent, (C, H, W).
        encode: Gives the latents of pixels, uint8 with shape (B, C, H, W), as float16.
        save: Writes to a path what decodes them.
        stamp: Changes when that does.
        keep: How many images of a split, from the first in the order of its shards, keep their pixels too.
    """

    shape: tuple[int, int, int]
    encode: Callable[[Tensor], Tensor]
    save: Callable[[Path], None]
    stamp: str
    keep: int


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        name: Of the data set.
        shape: Of an image, (C, H, W).
        classes: Names in the order of the labels; empty for images without labels.
        train: Images to learn from.
        test: Images to measure on.
        notes: How the images were made from the files, one sentence.
        latents: What is stored in the place of the images; None for the images themselves.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    notes: str
    latents: Latents | None = None


def with_validation(source: Source, share: float, seed: int, key: str = "data") -> Source:
    """Measures on a share of the training images; the test images are left out entirely.

    For choosing settings, so that the test images stay unseen until the final figures. The choice is
    stratified and independent of the choice of test images.

    Arguments:
        source: The data set.
        share: Of the training images to measure on, between 0 and 1.
        seed: Seed of the choice.
        key: The section's, for messages.

    Raises:
        InputError: There are too few training images.
    """
    examples = source.train
    strata = torch.zeros(len(examples), dtype=torch.long) if examples.labels is None else examples.labels
    train, validation = stratified_split(strata, share, seed, VALIDATION)
    if len(validation) == 0:
        raise InputError(f"{key}.validation is {share}, but {source.name} has {len(examples)} training images to share")
    notes = f"{source.notes}; the split test holds a share of {share} of the training images, and no test image"
    return replace(source, train=examples.subset(train), test=examples.subset(validation), notes=notes)


def with_limit(source: Source, limit: int, seed: int) -> Source:
    """Keeps so many images of each split at most, a random choice, to see whether a large data set runs.

    Arguments:
        source: The data set.
        limit: Images.
        seed: Seed of the choice.
    """
    if max(len(source.train), len(source.test)) <= limit:
        return source
    splits = {"train": source.train, "test": source.test}
    chosen = {
        name: examples.subset(torch.randperm(len(examples), generator=generator_for(seed, LIMIT))[:limit])
        for name, examples in splits.items()
    }
    return replace(source, **chosen, notes=f"{source.notes}; {limit} images of each split at most")


def with_mirror_images(source: Source) -> Source:
    """Doubles the training images by their mirror images; those to measure on stay as they are."""
    return replace(source, train=source.train.mirrored(), notes=f"{source.notes}; training images also mirrored")


def stratified_split(label: Tensor, fraction: float, seed: int, *counters: int) -> tuple[Tensor, Tensor]:
    """Splits the indices 0..N-1 so that each class is cut in the same ratio.

    ceil(fraction N) images are for testing. Each class gives its share rounded down, and those
    with the largest remainders one more; no class is left without an image on either side.

    Arguments:
        label: Classes as int64, with shape (N,), at least two images each.
        fraction: Share of the images to test on, between 0 and 1.
        seed: Seed of the choice.
        counters: Make the choice another one.

    Returns:
        Indices to train on and indices to test on, each sorted.
    """
    count = torch.bincount(label)
    share = count * fraction
    quota = share.floor().long()
    extra = int(torch.tensor(len(label) * fraction).ceil()) - int(quota.sum())
    quota[(quota - share).argsort(stable=True)[:extra]] += 1
    quota = quota.clamp(min=1).minimum(count - 1)
    generator = generator_for(seed, *counters)
    chosen = []
    for k, wanted in enumerate(quota.tolist()):
        members = (label == k).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    test = torch.zeros(len(label), dtype=torch.bool)
    test[torch.cat(chosen)] = True
    return (~test).nonzero()[:, 0], test.nonzero()[:, 0]
