"""Data sets by name."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nfm.data.cifar10 import CLASSES, MD5, read_cifar10
from nfm.data.examples import Examples, Source, stratified_split
from nfm.data.files import Files, list_folder
from nfm.data.idx import read_mnist
from nfm.data.images import FILTERS, MODES
from nfm.data.tar import list_tars
from nfm.errors import InputError


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
    examples = Examples.of(pixels, torch.from_numpy(target).long())
    train, test = stratified_split(torch.from_numpy(target).long(), test_fraction, seed)
    return Source(
        name="digits",
        shape=(1, 8, 8),
        classes=tuple(str(digit) for digit in range(10)),
        train=examples.subset(train),
        test=examples.subset(test),
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
        train=Examples.of(_sized(train[0], size), train[1]),
        test=Examples.of(_sized(test[0], size), test[1]),
        notes=f"MNIST, {sizes[size]}",
    )


def cifar10(archive: Path, md5: str = MD5) -> Source:
    """Reads CIFAR-10: 50,000 images to train on and 10,000 to test on, 32x32 in colour.

    Arguments:
        archive: The python archive, cifar-10-python.tar.gz.
        md5: Checksum that it must have, in hexadecimal.

    Raises:
        InputError: The archive is missing, damaged, or not the published one.

    References:
        Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009).
        https://www.cs.toronto.edu/~kriz/cifar.html
    """
    splits = read_cifar10(archive, md5)
    return Source(
        name="cifar10",
        shape=(3, 32, 32),
        classes=CLASSES,
        train=Examples.of(*splits["train"]),
        test=Examples.of(*splits["test"]),
        notes="CIFAR-10, as published",
    )


def folder(
    path: Path,
    name: str,
    size: int,
    channels: int,
    filter: str,
    test_fraction: float,
    seed: int,
    key: str = "data",
) -> Source:
    """Reads a folder with one sub-folder of images per class, or with tar shards (see `list_tars`).

    Images are cut to their central square and resized; the split is stratified. A single
    sub-folder is a data set without labels.

    Arguments:
        path: The folder.
        name: Of the data set.
        size: Height and width wanted, pixels.
        channels: 1 for grey, 3 for colour.
        filter: PIL's resampling filter: "box", "bilinear", "bicubic" or "lanczos".
        test_fraction: Share of the images to test on.
        seed: Seed of the split.
        key: The section's, for messages.

    Raises:
        InputError: There is no class, a class has fewer than two images (one to train on, one to
            test on), or, once read, an image cannot be used.
    """
    _check(channels, filter)
    files = _list(path, f"{key}.folder", minimum=2)
    examples = files.examples(size, channels, filter)
    train, test = stratified_split(files.label, test_fraction, seed)
    return Source(
        name=name,
        shape=(channels, size, size),
        classes=files.classes if len(files.classes) > 1 else (),
        train=examples.subset(train),
        test=examples.subset(test),
        notes=f"central square resized with PIL's {filter} filter, {MODES[channels]}",
    )


def imagenet(train: Path, test: Path, size: int, filter: str, key: str = "data") -> Source:
    """Reads ImageNet from two folders, each with class sub-folders or tar shards, in colour.

    The central square is resized in one step by PIL's filter; with "box" a pixel is the mean over
    the area that it covers, which is how the 64x64 images of ADM were made. Printing colours,
    which a few of the published files have, are turned to RGB, as ADM's loader does.

    Arguments:
        train: Folder of the images to train on.
        test: Folder of the images to measure on, of the same classes.
        size: Height and width wanted, pixels.
        filter: PIL's resampling filter: "box", "bilinear", "bicubic" or "lanczos".
        key: The section's, for messages.

    Raises:
        InputError: A folder holds no image or no class, a class of it holds no image, the test
            images have other classes, or, once read, an image cannot be used.

    References:
        A Downsampled Variant of ImageNet (Chrabaszcz et al., 2017). https://arxiv.org/abs/1707.08819
        Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021; ADM).
        https://arxiv.org/abs/2105.05233
    """
    _check(3, filter)
    learn, measure = _list(train, f"{key}.train", minimum=1), _list(test, f"{key}.test", minimum=1)
    label = _labels_by(learn, measure, test, key)
    examples = measure.examples(size, 3, filter, cmyk=True)
    area = " (the mean over the area of each pixel)" if filter == "box" else ""
    return Source(
        name=f"imagenet{size}",
        shape=(3, size, size),
        classes=learn.classes if len(learn.classes) > 1 else (),
        train=learn.examples(size, 3, filter, cmyk=True),
        test=Examples(examples.stamps, label, examples.read),
        notes=f"central square resized in one step with PIL's {filter} filter{area}, RGB",
    )


def _list(path: Path, key: str, minimum: int) -> Files:
    if not path.is_dir():
        raise InputError(f"{key} is {path}, which is no folder; name one that exists")
    packed = sorted(file.name for file in path.iterdir() if file.name.endswith((".tar.gz", ".tgz", ".tar.zst")))
    if packed:
        raise InputError(f"{path / packed[0]} is compressed, expected uncompressed tar shards; unpack it to a .tar")
    if any(path.glob("*.tar")):
        return list_tars(path)
    return list_folder(path, minimum)


def _labels_by(learn: Files, measure: Files, test: Path, key: str) -> Tensor | None:
    """Returns the labels of the test images in the order of the training images' classes."""
    if len(learn.classes) == len(measure.classes) == 1:
        return None
    unknown = [name for name in measure.classes if name not in learn.classes]
    if unknown or len(learn.classes) == 1:
        raise InputError(
            f"{key}.test is {test}, whose class {(unknown or measure.classes)[0]!r} is none of {key}.train's; "
            "give both the same classes"
        )
    return torch.tensor([learn.classes.index(name) for name in measure.classes])[measure.label]


def _check(channels: int, filter: str) -> None:
    if channels not in MODES or filter not in FILTERS:
        raise ValueError(
            f"channels is {channels} and filter {filter!r}, expected one of {list(MODES)} and one of {list(FILTERS)}"
        )


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
