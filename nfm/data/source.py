"""Data sets by name, read into memory as uint8 images."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nfm.data.idx import read_mnist
from nfm.data.images import FILTERS, MODES, list_images, read_image
from nfm.errors import InputError
from nfm.random import generator_for

VALIDATION = 1  # stream of the choice of validation images; that of the test images has no counter

Examples = tuple[Tensor, Tensor | None]  # uint8 images (N, C, H, W), int64 labels (N,)


@dataclass(frozen=True)
class Source:
    """A data set in memory.

    Attributes:
        name: Of the data set.
        shape: Of an image, (C, H, W).
        classes: Names in the order of the labels; empty for images without labels.
        train: Images to learn from, and their labels.
        test: Images to measure on, and their labels.
        notes: How the images were made from the files, one sentence.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    notes: str


def digits(test_fraction: float, seed: int) -> Source:
    """Reads the 1797 handwritten digits, 8x8, that come with scikit-learn.

    Values v from 0 to 16 become round(255 v / 16). The split is stratified.

    References:
        Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998).
        https://doi.org/10.24432/C50P49
    """
    from sklearn.datasets import load_digits

    values, target = (np.asarray(array) for array in load_digits(return_X_y=True))
    pixels = torch.from_numpy(values * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    label = torch.from_numpy(target).long()
    train, test = stratified_split(label, test_fraction, seed)
    return Source(
        name="digits",
        shape=(1, 8, 8),
        classes=tuple(str(digit) for digit in range(10)),
        train=(pixels[train], label[train]),
        test=(pixels[test], label[test]),
        notes="scikit-learn's digits, 0..16 scaled to 0..255",
    )


def mnist(path: Path, size: int, download: bool = False) -> Source:
    """Reads MNIST: 60,000 images to train on and 10,000 to test on.

    Arguments:
        path: Folder of the four IDX files.
        size: 28 as published; 32 with a border of two black pixels; 16 as the means of that
            image's 2x2 squares, rounded, halves up.
        download: Whether to fetch missing files.

    Raises:
        InputError: A file is missing, damaged, or not the published one.

    References:
        Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998).
        https://doi.org/10.1109/5.726791
    """
    sizes = {
        28: "as published",
        32: "padded by two black pixels",
        16: "padded by two black pixels, then 2x2 means",
    }
    if size not in sizes:
        raise ValueError(f"size is {size}, expected one of {sorted(sizes)}")
    train, test = (read_mnist(path, split, download) for split in ("train", "t10k"))
    return Source(
        name="mnist",
        shape=(1, size, size),
        classes=tuple(str(digit) for digit in range(10)),
        train=(_sized(train[0], size), train[1]),
        test=(_sized(test[0], size), test[1]),
        notes=f"MNIST, {sizes[size]}",
    )


def folder(path: Path, size: int, channels: int, filter: str, test_fraction: float, seed: int) -> Source:
    """Reads a folder with one sub-folder of images per class.

    Images are cut to their central square and resized; the split is stratified. A single
    sub-folder is a data set without labels.

    Arguments:
        path: The folder.
        size: Height and width wanted, pixels.
        channels: 1 for grey, 3 for colour.
        filter: PIL's resampling filter: "box", "bilinear", "bicubic" or "lanczos".
        test_fraction: Share of the images to test on.
        seed: Seed of the split.

    Raises:
        InputError: There is no class, a class has fewer than two images, or an image cannot be
            read.
    """
    if channels not in MODES or filter not in FILTERS:
        raise ValueError(
            f"channels is {channels} and filter {filter!r}, expected one of {list(MODES)} and one of {list(FILTERS)}"
        )
    files = list_images(path)
    paths = [file for of_class in files.values() for file in of_class]
    label = torch.arange(len(files)).repeat_interleave(torch.tensor([len(of_class) for of_class in files.values()]))

    def read(index: Tensor) -> Examples:
        images = torch.empty(len(index), channels, size, size, dtype=torch.uint8)
        for row, i in enumerate(index.tolist()):
            images[row] = read_image(paths[i], size, channels, filter)
        return images, label[index] if len(files) > 1 else None

    train, test = stratified_split(label, test_fraction, seed)
    return Source(
        name=path.resolve().name,
        shape=(channels, size, size),
        classes=tuple(files) if len(files) > 1 else (),
        train=read(train),
        test=read(test),
        notes=f"central square resized with PIL's {filter} filter, {MODES[channels]}",
    )


def with_validation(source: Source, share: float, seed: int) -> Source:
    """Measures on a share of the training images; the test images are left out entirely.

    For choosing settings, so that the test images stay unseen until the final figures. The choice is
    stratified and independent of the choice of test images.

    Arguments:
        source: The data set.
        share: Of the training images to measure on, between 0 and 1.
        seed: Seed of the choice.

    Raises:
        InputError: There are too few training images.
    """
    images, label = source.train
    strata = torch.zeros(len(images), dtype=torch.long) if label is None else label
    train, validation = stratified_split(strata, share, seed, VALIDATION)
    if len(validation) == 0:
        raise InputError(f"data.validation is {share}, but {source.name} has {len(images)} training images to share")

    def rows(index: Tensor) -> Examples:
        return images[index], None if label is None else label[index]

    notes = f"{source.notes}; the split test holds a share of {share} of the training images, and no test image"
    return replace(source, train=rows(train), test=rows(validation), notes=notes)


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


def _sized(images: Tensor, size: int) -> Tensor:
    """Brings 28x28 images, with shape (N, 28, 28), to a size, with shape (N, 1, size, size)."""
    images = images[:, None]
    if size == 28:
        return images
    images = functional.pad(images, [2, 2, 2, 2])
    if size == 32:
        return images
    quads = images.unflatten(2, (16, 2)).unflatten(4, (16, 2)).sum(dim=(3, 5))
    return ((quads + 2) // 4).to(torch.uint8)
