"""Data sets that fit memory, the IDX format, splits, validation and mirror images."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST as MIRRORED

from nfm.artifacts import sha256
from nfm.build.data import make_source
from nfm.config import DigitsData, FolderData
from nfm.data import idx
from nfm.data.examples import Examples, stratified_split
from nfm.data.idx import read_idx
from nfm.data.source import digits, mnist
from nfm.errors import InputError
from nfm.plan.size import data_size
from tests.pictures import save

COUNTS = {"train": 30, "t10k": 20}


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder of four small files named as MNIST's, with their hashes in place of MNIST's."""
    rng, hashes = np.random.default_rng(0), {}
    for split, count in COUNTS.items():
        arrays = {
            f"{split}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28)),
            f"{split}-labels-idx1-ubyte": rng.integers(0, 10, count),
        }
        for name, array in arrays.items():
            plain = tmp_path / name
            plain.write_bytes(idx_bytes(array))
            hashes[name] = sha256(plain)
            if split == "t10k":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
                plain.unlink()
    monkeypatch.setattr(idx, "MNIST", hashes)
    return tmp_path


# Digits and splits


def test_digits_are_split_once_each_and_evenly_by_class():
    from sklearn.datasets import load_digits

    source = digits(0.3, seed=0)
    train, test, train_label, test_label = (
        source.train.images(),
        source.test.images(),
        source.train.labels,
        source.test.labels,
    )
    assert (len(train), len(test)) == (1257, 540)
    values, target = load_digits(return_X_y=True)
    together = torch.cat([train, test]).flatten(1).double() * 16 / 255
    rows = np.column_stack([together.round().numpy(), torch.cat([train_label, test_label])])
    wanted = np.column_stack([values, target])
    assert np.array_equal(rows[np.lexsort(rows.T)], wanted[np.lexsort(wanted.T)])
    share = test_label.bincount().numpy() - 0.3 * np.bincount(target)
    assert np.abs(share).max() < 1


def test_digits_use_the_whole_scale_of_pixels():
    pixels = digits(0.3, seed=0).train.images()
    assert pixels.unique().tolist() == [round(255 * v / 16) for v in range(17)]


def test_a_split_is_a_function_of_its_seed():
    label = torch.arange(300) % 7
    first, again, other = (stratified_split(label, 0.25, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99])
def test_no_class_is_left_without_an_image_on_either_side(fraction):
    label = torch.tensor([0] * 2 + [1] * 50 + [2] * 3)
    train, test = stratified_split(label, fraction, 0)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(55))
    assert label[train].unique().tolist() == label[test].unique().tolist() == [0, 1, 2]


# IDX


def test_idx_is_read_plain_and_packed(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    plain, packed = tmp_path / "plain", tmp_path / "packed.gz"
    plain.write_bytes(idx_bytes(array))
    packed.write_bytes(gzip.compress(idx_bytes(array)))
    for path in (plain, packed):
        assert np.array_equal(read_idx(path).numpy(), array)


GOOD = idx_bytes(np.arange(24).reshape(2, 3, 4))
BROKEN = {
    "empty": b"",
    "magic": b"\x89PNG" + GOOD[4:],
    "type": GOOD[:2] + b"\x0d" + GOOD[3:],
    "header": GOOD[:9],
    "truncated": GOOD[:-1],
    "too long": GOOD + b"\x00",
    "count": GOOD[:4] + struct.pack(">I", 3) + GOOD[8:],
    "gzip truncated": gzip.compress(GOOD)[:-9],
    "gzip damaged": gzip.compress(GOOD)[:12] + b"\xff\xff\xff" + gzip.compress(GOOD)[15:],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_idx_file_is_named(tmp_path, content):
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match="some-idx3-ubyte"):
        read_idx(path)


# MNIST


def test_mnist_sizes_are_the_padded_image_and_its_means(tiny_mnist):
    full, padded, small = (mnist(tiny_mnist, size).train.images() for size in (28, 32, 16))
    assert padded.shape == (30, 1, 32, 32)
    assert torch.equal(padded[:, :, 2:-2, 2:-2], full)
    assert int(padded.sum()) == int(full.sum())
    for row, column in ((0, 0), (1, 1), (7, 9), (15, 15)):
        quad = padded[:, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        mean = np.floor(quad.flatten(1).double().mean(dim=1).numpy() + 0.5)
        assert np.array_equal(small[:, 0, row, column].numpy(), mean)


def test_mnist_labels_stay_with_their_images(tiny_mnist):
    source = mnist(tiny_mnist, 28)
    raw = read_idx(tiny_mnist / "t10k-labels-idx1-ubyte.gz")
    assert torch.equal(source.test.labels, raw.long())
    assert torch.equal(source.test.images()[:, 0], read_idx(tiny_mnist / "t10k-images-idx3-ubyte.gz"))


def test_a_well_formed_file_that_is_not_mnist_is_refused(tiny_mnist):
    path = tiny_mnist / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte .*SHA-256"):
        mnist(tiny_mnist, 28)


def test_missing_files_are_asked_for(tiny_mnist):
    (tiny_mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"neither t10k-labels-idx1-ubyte nor .*data\.download"):
        mnist(tiny_mnist, 28)


def test_missing_files_are_downloaded_from_the_first_mirror_that_answers(tiny_mnist, tmp_path, monkeypatch):
    mirrors = [f"{path.as_uri()}/" for path in (tmp_path / "absent", tiny_mnist)]
    monkeypatch.setattr(MIRRORED, "mirrors", mirrors)
    for path in tiny_mnist.glob("train-*"):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    target = tmp_path / "new" / "folder"
    source = mnist(target, 28, download=True)
    assert torch.equal(source.train.images(), mnist(tiny_mnist, 28).train.images())
    assert sorted(path.name for path in target.iterdir()) == sorted(f"{n}.gz" for n in idx.MNIST)


def test_a_failed_download_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(MIRRORED, "mirrors", [f"{(tmp_path / 'absent').as_uri()}/"])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz could not be downloaded"):
        mnist(tmp_path / "new", 28, download=True)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif("NFM_TEST_MNIST" not in os.environ, reason="NFM_TEST_MNIST names no folder of MNIST's files")
def test_the_published_mnist_is_recognised():
    source = mnist(Path(os.environ["NFM_TEST_MNIST"]), 16)
    train, test = source.train.labels, source.test.labels
    assert train is not None
    assert test is not None
    assert train.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The published mean of the 28x28 pixels is 33.32; padding dilutes it by (28/32)^2.
    assert source.train.images().double().mean().item() == pytest.approx(33.32 * (28 / 32) ** 2, abs=0.2)


# Validation


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_validation_images_are_training_images_cut_evenly_and_no_test_image_is_left():
    section = {"kind": "digits", "test_fraction": 0.3, "seed": 0}
    whole, cut = (make_source(DigitsData(**section, validation=share), Path()) for share in (None, 0.2))
    train, validation = rows(cut.train.images()), rows(cut.test.images())
    assert sorted(train + validation) == sorted(rows(whole.train.images()))
    # The digits hold no image twice, so these sets tell images apart.
    assert not set(train) & set(validation)
    assert not set(rows(whole.test.images())) & set(train + validation)
    share = cut.test.labels.bincount() - 0.2 * whole.train.labels.bincount()
    assert share.abs().max() < 1
    of = {row: int(label) for row, label in zip(rows(whole.train.images()), whole.train.labels, strict=True)}
    assert [of[row] for row in train + validation] == torch.cat([cut.train.labels, cut.test.labels]).tolist()
    assert "no test image" in cut.notes


# Mirror images


def test_mirror_images_follow_the_images_with_their_labels():
    images = torch.randint(256, (300, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(300) % 7
    doubled = Examples.of(images, labels).mirrored()
    assert torch.equal(doubled.images(), torch.cat([images, images[..., [2, 1, 0]]]))
    assert torch.equal(doubled.labels, torch.cat([labels, labels]))
    rows = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(list(doubled.read(rows))), doubled.images()[rows])
    assert len(doubled.stamps.unique()) == 600


def test_a_subset_reads_its_own_rows():
    images, rows = torch.arange(600).to(torch.uint8).reshape(600, 1, 1, 1), torch.arange(599, 0, -2)
    subset = Examples.of(images, torch.arange(600)).subset(rows)
    assert torch.equal(subset.images(), images[rows])
    assert torch.equal(subset.labels, rows)


def test_a_limit_keeps_images_of_each_split_at_random_and_their_mirror_images(tmp_path):
    for number in range(40):
        save(
            tmp_path / "set" / "ab"[number % 2] / f"{number}.png", np.arange(16, dtype=np.uint8).reshape(4, 4) + number
        )
    section = {"kind": "folder", "folder": "set", "image_size": 4, "channels": 1, "filter": "box", "seed": 0}
    section |= {"test_fraction": 0.2, "validation": None, "flips": True, "version": None}
    whole, cut = (make_source(FolderData(**section, limit=limit), tmp_path) for limit in (None, 10))
    assert (len(whole.train), len(whole.test)) == (64, 8)
    assert (len(cut.train), len(cut.test)) == (20, 8)
    assert {*rows(cut.train.images())} < {*rows(whole.train.images())}
    assert rows(cut.train.images())[:10] != rows(whole.train.images())[:10]
    assert len(cut.train.labels.unique()) == 2
    assert "10 images of each split at most" in cut.notes
    size = data_size(FolderData(**section, limit=10), tmp_path, None, None)
    assert (size.train, size.test) == (20, 8)
    assert data_size(FolderData(**section, limit=10), tmp_path, 1000, 2).train == 20


def test_only_training_images_are_mirrored_and_none_that_is_measured_on(tmp_path):
    for number in range(20):
        save(tmp_path / "set" / "x" / f"{number}.png", np.random.default_rng(number).integers(0, 256, (4, 4), np.uint8))
    section = {"kind": "folder", "folder": "set", "image_size": 4, "channels": 1, "filter": "box", "seed": 0}
    section |= {"test_fraction": 0.2, "validation": 0.25, "flips": True, "limit": None, "version": None}
    source = make_source(FolderData(**section), tmp_path)
    assert (len(source.train), len(source.test)) == (24, 4)
    train, measured = rows(source.train.images()), source.test.images()
    assert sorted(train) == sorted(rows(source.train.images().flip(-1)))
    assert not set(train) & {*rows(measured), *rows(measured.flip(-1))}
    assert "mirrored" in source.notes
