"""Tar shards, and ImageNet's two folders."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from nfm.data.source import folder, imagenet
from nfm.errors import InputError
from tests.pictures import flat, png, save, tar

# what the members of the shards are called -> the classes that come out
LAYOUTS = {
    "folders in the tar": ("{shard}.tar", "deep/{kind}/{i}.png", ("dark", "light")),
    "WebDataset": ("{shard}.tar", "{i:04}.png", ("3", "12")),
    "a tar per class": ("{kind}.tar", "{kind}_{i}.png", ("dark", "light")),
}


def write_shards(place, layout):
    """Writes 12 images of a grey each, half of them light; the grey tells which is which."""
    shard_name, name, classes = LAYOUTS[layout]
    shards = {}
    for i in range(12):
        kind, label = (("light", "dark")[i % 2], ("12", "3")[i % 2])
        shard = shards.setdefault(shard_name.format(shard=i // 5, kind=kind), {})
        member = name.format(kind=kind, i=i)
        shard[member] = png(i + 100 * (kind == "light"))
        if layout == "WebDataset":
            shard[member.replace(".png", ".cls")] = label.encode()
            shard[member.replace(".png", ".json")] = b"{}"
    for file, members in shards.items():
        tar(place / file, {"._hidden.png": b"", **members})
    return classes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tar_shards_give_each_image_once_with_its_class(tmp_path, layout):
    classes = write_shards(tmp_path / "train", layout)
    source = imagenet(tmp_path / "train", tmp_path / "train", 4, "box")
    assert source.classes == classes
    grey = source.train.images()[:, 0, 0, 0]
    assert sorted(grey.tolist()) == [*range(1, 12, 2), *range(100, 112, 2)]
    assert torch.equal(source.train.labels, (grey >= 100).long())
    rows = torch.tensor([11, 0, 7, 7])
    assert torch.equal(torch.cat(list(source.train.read(rows))), source.train.images()[rows])


def test_shards_without_classes_are_a_data_set_without_labels(tmp_path):
    for shard in range(2):
        tar(tmp_path / f"{shard}.tar", {f"{i}.png": png(10 * shard + i) for i in range(3)})
    source = folder(tmp_path, "made", 4, 3, "box", 0.5, 0)
    assert (source.classes, source.train.labels, source.test.labels) == ((), None, None)
    images = torch.cat([source.train.images(), source.test.images()])
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 10, 11, 12]


def test_labels_of_test_images_count_in_the_order_of_the_training_classes(tmp_path):
    for name in "abc":
        save(tmp_path / "train" / name / "0.png", flat(ord(name)))
    for name in "bc":
        save(tmp_path / "test" / name / "0.png", flat(ord(name)))
    source = imagenet(tmp_path / "train", tmp_path / "test", 4, "box")
    assert source.classes == ("a", "b", "c")
    assert dict(zip(source.test.labels.tolist(), source.test.images()[:, 0, 0, 0].tolist(), strict=True)) == {
        1: ord("b"),
        2: ord("c"),
    }


@pytest.mark.parametrize("size", [4, 6])
def test_the_box_filter_is_the_mean_over_the_area_of_each_pixel_of_the_central_square(tmp_path, size):
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    save(tmp_path / "x" / "0.png", picture)
    source = imagenet(tmp_path, tmp_path, size, "box")
    k = 24 // size
    means = picture[:, 8:32].reshape(size, k, size, k, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(source.train.images()[0].numpy() - means).max() <= 1  # PIL rounds after each of two passes
    assert "mean over the area" in source.notes


def test_the_few_printing_colours_of_imagenet_become_rgb(tmp_path):
    (tmp_path / "x").mkdir()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x" / "red.jpg", quality=95)
    pixel = imagenet(tmp_path, tmp_path, 4, "box").train.images()[0, :, 0, 0].int()
    assert (pixel - torch.tensor([255, 0, 0])).abs().max() <= 6


def truncated(path):
    content = (path / "0.tar").read_bytes()
    (path / "0.tar").write_bytes(content[: len(content) // 2])
    return r"0\.tar (cannot be read|is truncated)"


def cut_between_members(path):
    """Where tarfile itself sees a clean end."""
    with tarfile.open(path / "0.tar") as archive:
        place = archive.getmembers()[3].offset
    (path / "0.tar").write_bytes((path / "0.tar").read_bytes()[:place])
    return r"0\.tar is truncated or damaged at byte"


def damaged_header(path):
    with tarfile.open(path / "0.tar") as archive:
        place = archive.getmembers()[3].offset
    content = bytearray((path / "0.tar").read_bytes())
    content[place : place + 100] = b"x" * 100
    (path / "0.tar").write_bytes(content)
    return rf"0\.tar is truncated or damaged at byte {place}"


def compressed_content(path):
    tar(path / "0.tar", {"a/0.png": png(0)}, "w:gz")
    return r"0\.tar cannot be read as an uncompressed tar"


def compressed_name(path):
    tar(path / "0.tar.gz", {"a/0.png": png(0)}, "w:gz")
    return r"0\.tar\.gz is compressed"


def no_image(path):
    for file in path.glob("*.tar"):
        tar(file, {"readme.txt": b"no image"})
    return "hold no image"


def some_without_class(path):
    tar(path / "9.tar", {"stray.png": png(0)})
    return "images with a class and images without"


def bad_image(path):
    tar(path / "9.tar", {"dark/fine.png": png(0), "light/text.png": b"hello"})
    return r"9\.tar: light/text\.png is no image of a format that PIL reads"


def other_classes(path):
    tar(path.parent / "test" / "0.tar", {"grey/0.png": png(0)})
    return "data.test is .*, whose class 'grey' is none of data.train's"


def class_without_image(path):
    for file in path.iterdir():
        file.unlink()
    save(path / "dark" / "0.png", flat(0))
    (path / "light").mkdir()
    return "class 'light' .* holds 0 images"


def no_folder(path):
    path.rename(path.parent / "elsewhere")
    return "data.train is .*train, which is no folder"


MISTAKES = [
    truncated, cut_between_members, damaged_header, compressed_content, compressed_name, no_image,
    some_without_class, bad_image, other_classes, class_without_image, no_folder,
]  # fmt: skip


@pytest.mark.parametrize("make", MISTAKES, ids=[make.__name__ for make in MISTAKES])
def test_a_mistake_is_named(tmp_path, make):
    write_shards(tmp_path / "train", "folders in the tar")
    write_shards(tmp_path / "test", "folders in the tar")
    message = make(tmp_path / "train")
    with pytest.raises(InputError, match=message) as caught:
        imagenet(tmp_path / "train", tmp_path / "test", 4, "box").train.images()
    assert "\n" not in str(caught.value)
