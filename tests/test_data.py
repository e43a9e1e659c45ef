"""Data sets, the IDX format, image folders and shards."""

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST as MIRRORED

from nfm.artifacts import read_json, sha256
from nfm.build.data import make_source
from nfm.config import DigitsData
from nfm.data import idx, shards
from nfm.data.idx import read_idx
from nfm.data.shards import Split, from_uint8, to_uint8, write_split
from nfm.data.source import digits, folder, mnist, stratified_split, with_validation
from nfm.errors import InputError

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


def examples(count: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that all differ and name their own label in the first pixel."""
    labels = torch.arange(count) % classes
    images = torch.arange(count * 2 * 3 * 3).remainder(251).to(torch.uint8).reshape(-1, 2, 3, 3)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels.to(torch.uint8), torch.arange(count)
    return images, labels


def write(path: Path, count: int = 40, seed: int = 0, shard_bytes: int = 10**6) -> Split:
    images, labels = examples(count)
    write_split(
        path,
        images,
        labels,
        dataset="made",
        classes=("a", "b", "c"),
        seed=seed,
        shard_bytes=shard_bytes,
    )
    return Split.open(path, verify=True)


# Scale


def test_every_pixel_value_survives_the_way_to_the_model_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)
    assert from_uint8(pixels)[[0, -1]].tolist() == [-1.0, 1.0]


def test_samples_outside_the_scale_are_clamped_and_not_wrapped():
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_no_pixels(bad):
    with pytest.raises(InputError, match="1 of 2 values"):
        to_uint8(torch.tensor([0.0, bad]))


# Digits and splits


def test_digits_are_split_once_each_and_evenly_by_class():
    from sklearn.datasets import load_digits

    source = digits(0.3, seed=0)
    (train, train_label), (test, test_label) = source.train, source.test
    assert (len(train), len(test)) == (1257, 540)
    values, target = load_digits(return_X_y=True)
    together = torch.cat([train, test]).flatten(1).double() * 16 / 255
    rows = np.column_stack([together.round().numpy(), torch.cat([train_label, test_label])])
    wanted = np.column_stack([values, target])
    assert np.array_equal(rows[np.lexsort(rows.T)], wanted[np.lexsort(wanted.T)])
    share = test_label.bincount().numpy() - 0.3 * np.bincount(target)
    assert np.abs(share).max() < 1


def test_digits_use_the_whole_scale_of_pixels():
    pixels = digits(0.3, seed=0).train[0]
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
    full, padded, small = (mnist(tiny_mnist, size).train[0] for size in (28, 32, 16))
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
    assert torch.equal(source.test[1], raw.long())
    assert torch.equal(source.test[0][:, 0], read_idx(tiny_mnist / "t10k-images-idx3-ubyte.gz"))


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
    assert torch.equal(source.train[0], mnist(tiny_mnist, 28).train[0])
    assert sorted(path.name for path in target.iterdir()) == sorted(f"{n}.gz" for n in idx.MNIST)


def test_a_failed_download_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(MIRRORED, "mirrors", [f"{(tmp_path / 'absent').as_uri()}/"])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz could not be downloaded"):
        mnist(tmp_path / "new", 28, download=True)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif("NFM_TEST_MNIST" not in os.environ, reason="NFM_TEST_MNIST names no folder of MNIST's files")
def test_the_published_mnist_is_recognised():
    source = mnist(Path(os.environ["NFM_TEST_MNIST"]), 16)
    train, test = source.train[1], source.test[1]
    assert train is not None
    assert test is not None
    assert train.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The published mean of the 28x28 pixels is 33.32; padding dilutes it by (28/32)^2.
    assert source.train[0].double().mean().item() == pytest.approx(33.32 * (28 / 32) ** 2, abs=0.2)


# Folders


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def read(path: Path, **options):
    settings = {"size": 4, "channels": 1, "filter": "box", "test_fraction": 0.5, "seed": 0}
    return folder(path, **{**settings, **options})


@pytest.fixture
def pictures(tmp_path):
    for number in range(6):
        save(tmp_path / "set" / "dark" / f"{number}.png", flat(10 + number))
        save(tmp_path / "set" / "light" / f"{number}.png", flat(200 + number))
    (tmp_path / "set" / ".hidden").mkdir()
    (tmp_path / "set" / "dark" / "readme.txt").write_text("no image")
    return tmp_path / "set"


def test_a_folder_gives_each_image_once_with_its_class(pictures):
    source = read(pictures)
    assert (source.classes, source.shape) == (("dark", "light"), (1, 4, 4))
    values, labels = (torch.cat(pair) for pair in zip(source.train, source.test, strict=True))
    assert sorted(values[:, 0, 0, 0].tolist()) == [*range(10, 16), *range(200, 206)]
    assert torch.equal(labels, (values[:, 0, 0, 0] > 100).long())
    assert len(source.test[0]) == 6


def test_a_single_class_is_a_data_set_without_labels(pictures):
    for path in (pictures / "light").iterdir():
        path.unlink()
    (pictures / "light").rmdir()
    source = read(pictures)
    assert source.classes == ()
    assert source.train[1] is None
    assert source.test[1] is None


def test_the_central_square_is_kept(tmp_path):
    wide = np.concatenate([flat(0, 8, 4), flat(100), flat(0, 8, 4)], axis=1)
    for name, array in {"wide": wide, "tall": wide.T}.items():
        save(tmp_path / "x" / f"{name}.png", array)
    images = read(tmp_path)
    assert torch.cat([images.train[0], images.test[0]]).unique().tolist() == [100]


@pytest.mark.parametrize("filter", ["box", "bilinear", "bicubic", "lanczos"])
def test_downsizing_does_not_alias(tmp_path, filter):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    for name in "ab":
        save(tmp_path / "x" / f"{name}.png", stripes)
    inside = read(tmp_path, filter=filter, size=8).train[0][..., 1:-1].int()
    assert (inside - 100).abs().max() <= 2


def test_colour_becomes_luma_and_grey_three_equal_channels(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    for name, array in {"red": red, "grey": flat(80)}.items():
        save(tmp_path / "x" / f"{name}.png", array)
    grey, colour = (read(tmp_path, channels=channels) for channels in (1, 3))
    luma = torch.cat([grey.train[0], grey.test[0]])[:, 0, 0, 0]
    assert sorted(luma.tolist()) == [round(0.299 * 200), 80]
    pixels = torch.cat([colour.train[0], colour.test[0]])[:, :, 0, 0]
    assert sorted(pixels.tolist()) == [[80, 80, 80], [200, 0, 0]]


def test_the_cameras_rotation_is_followed_and_transparency_is_white(tmp_path):
    half = np.concatenate([flat(0, 8, 4), flat(200, 8, 4)], axis=1)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right
    clear = np.zeros((8, 8, 4), np.uint8)
    for name in "ab":
        save(tmp_path / "turned" / "x" / f"{name}.png", half, exif=turned)
        save(tmp_path / "clear" / "x" / f"{name}.png", clear)
    image = read(tmp_path / "turned").train[0][0, 0]
    assert image.tolist() == [[0] * 4] * 2 + [[200] * 4] * 2
    assert read(tmp_path / "clear").train[0].unique().tolist() == [255]


def no_class(path: Path) -> str:
    for name in ("dark", "light"):
        (path / name).rename(path / f".{name}")
    return "no class"


def empty_class(path: Path) -> str:
    (path / "empty").mkdir()
    return "class 'empty'.* holds 0 images"


def one_image(path: Path) -> str:
    save(path / "lonely" / "0.png", flat(0))
    return "class 'lonely'.* holds 1 images"


def stray_image(path: Path) -> str:
    save(path / "stray.png", flat(0))
    return "stray.png lies outside"


def not_an_image(path: Path) -> str:
    (path / "dark" / "text.png").write_text("hello")
    return "text.png cannot be read"


def truncated_image(path: Path) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    save(path / "dark" / "cut.png", noise)
    (path / "dark" / "cut.png").write_bytes((path / "dark" / "cut.png").read_bytes()[:2000])
    return "cut.png cannot be read"


def deep_image(path: Path) -> str:
    save(path / "dark" / "deep.png", np.full((8, 8), 40000, np.uint16))
    return "deep.png has PIL's mode I;16"


def no_folder(path: Path) -> str:
    path.rename(path.parent / "elsewhere")
    return "data.folder is .*set"


MISTAKES = [
    no_class, empty_class, one_image, stray_image,
    not_an_image, truncated_image, deep_image, no_folder,
]  # fmt: skip


@pytest.mark.parametrize("make", MISTAKES, ids=[make.__name__ for make in MISTAKES])
def test_a_folders_mistake_is_named(pictures, make):
    message = make(pictures)
    with pytest.raises(InputError, match=message):
        read(pictures)


# Validation


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_validation_images_are_training_images_cut_evenly_and_no_test_image_is_left():
    section = {"kind": "digits", "test_fraction": 0.3, "seed": 0}
    whole, cut = (make_source(DigitsData(**section, validation=share), Path()) for share in (None, 0.2))
    train, validation = rows(cut.train[0]), rows(cut.test[0])
    assert sorted(train + validation) == sorted(rows(whole.train[0]))
    # The digits hold no image twice, so these sets tell images apart.
    assert not set(train) & set(validation)
    assert not set(rows(whole.test[0])) & set(train + validation)
    share = cut.test[1].bincount() - 0.2 * whole.train[1].bincount()
    assert share.abs().max() < 1
    of = {row: int(label) for row, label in zip(rows(whole.train[0]), whole.train[1], strict=True)}
    assert [of[row] for row in train + validation] == torch.cat([cut.train[1], cut.test[1]]).tolist()
    assert "no test image" in cut.notes


def test_images_without_labels_have_validation_images_too(pictures):
    shutil.rmtree(pictures / "light")
    source = with_validation(read(pictures, test_fraction=0.2), 0.5, 0)
    assert (len(source.train[0]), len(source.test[0]), source.test[1]) == (2, 2, None)


def test_too_few_images_for_validation_are_named(tmp_path):
    for name in "ab":
        save(tmp_path / "x" / f"{name}.png", flat(0))
    with pytest.raises(InputError, match=r"data\.validation is 0\.5, but .* has 1 training images"):
        with_validation(read(tmp_path), 0.5, 0)


# Shards


@pytest.mark.parametrize("shard_bytes", [1, 100, 18 * 7, 10**6])
def test_shards_hold_every_image_once_with_its_label(tmp_path, shard_bytes):
    split = write(tmp_path / "train", shard_bytes=shard_bytes)
    images, labels = examples(40)
    everything = torch.arange(len(split))
    numbers = split.raw(everything)[:, 0, 0, 1].long()
    assert numbers.sort().values.tolist() == list(range(40))
    assert torch.equal(split.raw(everything), images[numbers])
    assert torch.equal(split.labels(everything), labels[numbers])
    sizes = [path.stat().st_size for path in (tmp_path / "train").glob("*.u8")]
    assert max(sizes) <= max(shard_bytes, 18)


def test_rows_are_read_in_the_order_asked_for_across_shards(tmp_path):
    split = write(tmp_path / "train", shard_bytes=18 * 7)
    everything = split.raw(torch.arange(40))
    index = torch.tensor([39, 0, 6, 7, 7, 13, 14, 39])
    assert torch.equal(split.raw(index), everything[index])
    assert torch.equal(split.images(index), everything[index] / 127.5 - 1)
    assert split.raw(torch.tensor([], dtype=torch.long)).shape == (0, 2, 3, 3)


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path):
    settings = [{"seed": 0}, {"seed": 0, "shard_bytes": 60}, {"seed": 1}]
    first, again, other = (
        write(tmp_path / str(i), **setting).raw(torch.arange(40))[:, 0, 0, 1].tolist()
        for i, setting in enumerate(settings)
    )
    assert first == again
    assert first != other
    assert first != sorted(first)


@pytest.mark.parametrize("index", [[-1], [0, 40]])
def test_a_row_that_does_not_exist_is_refused(tmp_path, index):
    with pytest.raises(IndexError, match="expected 0 to 39"):
        write(tmp_path / "train").raw(torch.tensor(index))


def test_reading_changes_neither_the_shard_nor_what_was_read_before(tmp_path):
    split = write(tmp_path / "train")
    first = split.raw(torch.arange(3))
    kept = first.clone()
    first.zero_()
    assert torch.equal(split.raw(torch.arange(3)), kept)


def test_the_manifest_counts_what_is_there(tmp_path):
    write(tmp_path / "train")
    manifest = read_json(tmp_path / "train" / "manifest.json")
    assert manifest["count_per_class"] == {"a": 14, "b": 13, "c": 13}
    assert manifest["count"] == sum(entry["count"] for entry in manifest["shards"]) == 40


def test_images_without_labels_have_none(tmp_path):
    images, _ = examples(5)
    write_split(tmp_path / "train", images, None, dataset="made", classes=(), seed=0)
    split = Split.open(tmp_path / "train")
    assert split.labels(torch.arange(5)) is None
    assert split.classes == ()


def test_labels_beyond_the_classes_are_refused(tmp_path):
    images, labels = examples(5)
    with pytest.raises(ValueError, match="labels run from 0 to 2, expected 0 to 1"):
        write_split(tmp_path / "t", images, labels, dataset="made", classes=("a", "b"), seed=0)


def test_a_truncated_shard_is_named(tmp_path):
    write(tmp_path / "train", shard_bytes=18 * 7)
    path = tmp_path / "train" / "images-00001.u8"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"images-00001\.u8 holds 125 bytes, expected 126"):
        Split.open(tmp_path / "train")


@pytest.mark.parametrize("name", ["images-00001.u8", "labels.i64"])
def test_a_flipped_bit_is_found_when_asked_for(tmp_path, name):
    write(tmp_path / "train", shard_bytes=18 * 7)
    path = tmp_path / "train" / name
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    Split.open(tmp_path / "train")
    with pytest.raises(InputError, match=name):
        Split.open(tmp_path / "train", verify=True)


@pytest.mark.parametrize("name", ["images-00000.u8", "labels.i64", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "train")
    (tmp_path / "train" / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing.*prepare"):
        Split.open(tmp_path / "train")


def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    before = write(tmp_path / "train", seed=0).raw(torch.arange(40))

    def full(*_):
        raise OSError("disk")

    monkeypatch.setattr(shards, "write_json", full)
    with pytest.raises(OSError, match="disk"):
        write(tmp_path / "train", seed=1)
    assert torch.equal(Split.open(tmp_path / "train", verify=True).raw(torch.arange(40)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_second_write_replaces_the_first_wholly(tmp_path):
    write(tmp_path / "train", count=40, shard_bytes=18)
    assert len(write(tmp_path / "train", count=7)) == 7
    assert len(list((tmp_path / "train").glob("*.u8"))) == 1
