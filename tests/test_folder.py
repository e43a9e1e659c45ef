"""Image files in class folders."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nfm.data.examples import with_validation
from nfm.data.source import folder
from nfm.errors import InputError
from tests.pictures import flat, save


def read(path: Path, **options):
    settings = {"size": 4, "channels": 1, "filter": "box", "test_fraction": 0.5, "seed": 0}
    return folder(path, "made", **{**settings, **options})


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
    values = torch.cat([source.train.images(), source.test.images()])
    labels = torch.cat([source.train.labels, source.test.labels])
    assert sorted(values[:, 0, 0, 0].tolist()) == [*range(10, 16), *range(200, 206)]
    assert torch.equal(labels, (values[:, 0, 0, 0] > 100).long())
    assert len(source.test.images()) == 6


def test_a_single_class_is_a_data_set_without_labels(pictures):
    for path in (pictures / "light").iterdir():
        path.unlink()
    (pictures / "light").rmdir()
    source = read(pictures)
    assert source.classes == ()
    assert source.train.labels is None
    assert source.test.labels is None


def test_the_central_square_is_kept(tmp_path):
    wide = np.concatenate([flat(0, 8, 4), flat(100), flat(0, 8, 4)], axis=1)
    for name, array in {"wide": wide, "tall": wide.T}.items():
        save(tmp_path / "x" / f"{name}.png", array)
    images = read(tmp_path)
    assert torch.cat([images.train.images(), images.test.images()]).unique().tolist() == [100]


@pytest.mark.parametrize("filter", ["box", "bilinear", "bicubic", "lanczos"])
def test_downsizing_does_not_alias(tmp_path, filter):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    for name in "ab":
        save(tmp_path / "x" / f"{name}.png", stripes)
    inside = read(tmp_path, filter=filter, size=8).train.images()[..., 1:-1].int()
    assert (inside - 100).abs().max() <= 2


def test_colour_becomes_luma_and_grey_three_equal_channels(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    for name, array in {"red": red, "grey": flat(80)}.items():
        save(tmp_path / "x" / f"{name}.png", array)
    grey, colour = (read(tmp_path, channels=channels) for channels in (1, 3))
    luma = torch.cat([grey.train.images(), grey.test.images()])[:, 0, 0, 0]
    assert sorted(luma.tolist()) == [round(0.299 * 200), 80]
    pixels = torch.cat([colour.train.images(), colour.test.images()])[:, :, 0, 0]
    assert sorted(pixels.tolist()) == [[80, 80, 80], [200, 0, 0]]


def test_the_cameras_rotation_is_followed_and_transparency_is_white(tmp_path):
    half = np.concatenate([flat(0, 8, 4), flat(200, 8, 4)], axis=1)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right
    clear = np.zeros((8, 8, 4), np.uint8)
    for name in "ab":
        save(tmp_path / "turned" / "x" / f"{name}.png", half, exif=turned)
        save(tmp_path / "clear" / "x" / f"{name}.png", clear)
    image = read(tmp_path / "turned").train.images()[0, 0]
    assert image.tolist() == [[0] * 4] * 2 + [[200] * 4] * 2
    assert read(tmp_path / "clear").train.images().unique().tolist() == [255]


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
    return "text.png is no image of a format that PIL reads"


def truncated_image(path: Path) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    save(path / "dark" / "cut.png", noise)
    (path / "dark" / "cut.png").write_bytes((path / "dark" / "cut.png").read_bytes()[:2000])
    return "cut.png cannot be read"


def deep_image(path: Path) -> str:
    save(path / "dark" / "deep.png", np.full((8, 8), 40000, np.uint16))
    return "deep.png has PIL's mode I;16"


def deep_colours(path: Path) -> str:
    """A PNG of 16 bits a colour, which PIL would cut to 8 unasked."""
    lines = (b"\0" + b"\x12\x34" * 3 * 8) * 8
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(lines), b"IEND": b""}
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks.items()]
    (path / "dark" / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return "deep.png has PIL's mode RGB from 16 bits"


def printing_colours(path: Path) -> str:
    Image.new("CMYK", (8, 8)).save(path / "dark" / "print.jpg")
    return "print.jpg has the printing colours CMYK"


def animated(path: Path) -> str:
    frames = [Image.fromarray(flat(value)) for value in (0, 100)]
    frames[0].save(path / "light" / "moving.gif", save_all=True, append_images=frames[1:])
    return "moving.gif is animated"


def no_folder(path: Path) -> str:
    path.rename(path.parent / "elsewhere")
    return "data.folder is .*set"


MISTAKES = [
    no_class, empty_class, one_image, stray_image,
    not_an_image, truncated_image, deep_image, deep_colours, printing_colours, animated, no_folder,
]  # fmt: skip


@pytest.mark.parametrize("make", MISTAKES, ids=[make.__name__ for make in MISTAKES])
def test_a_folders_mistake_is_named(pictures, make):
    message = make(pictures)
    with pytest.raises(InputError, match=message):
        [split.images() for split in (read(pictures).train, read(pictures).test)]


def test_mixed_modes_and_sizes_become_one_mode_and_size(tmp_path):
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "YCbCr"]
    for number, mode in enumerate(modes):
        (tmp_path / "x").mkdir(exist_ok=True)
        image = Image.new("L", (8 + number, 20 - number), 255).convert(mode)
        image.save(tmp_path / "x" / f"{number}.{'jpg' if mode == 'YCbCr' else 'png'}")
    source = read(tmp_path, channels=3)
    images = torch.cat([source.train.images(), source.test.images()])
    assert images.shape == (len(modes), 3, 4, 4)
    assert images.unique().tolist() == [255]


# Validation


def test_images_without_labels_have_validation_images_too(pictures):
    shutil.rmtree(pictures / "light")
    source = with_validation(read(pictures, test_fraction=0.2), 0.5, 0)
    assert (len(source.train.images()), len(source.test.images()), source.test.labels) == (2, 2, None)


def test_too_few_images_for_validation_are_named(tmp_path):
    for name in "ab":
        save(tmp_path / "x" / f"{name}.png", flat(0))
    with pytest.raises(InputError, match=r"data\.validation is 0\.5, but .* has 1 training images"):
        with_validation(read(tmp_path), 0.5, 0)
