"""The stage prepare, by the command line, from images to splits."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from nfm.artifacts import read_json
from nfm.build import data as build
from nfm.cli import main
from nfm.config import read_mapping, with_overrides
from nfm.data.shards import Split
from tests.pictures import flat, save
from tests.test_cifar10 import contents, pack

ROOT = Path(__file__).parents[1]
FOLDER = {
    "kind": "folder",
    "folder": "images",
    "image_size": 4,
    "channels": 1,
    "filter": "box",
    "test_fraction": 0.25,
    "flips": False,
    "limit": None,
    "version": None,
    "validation": None,
    "seed": 0,
}


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Runs `nfm prepare` with a data section; returns the exit status and the lines on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFM_TRACKER", "none")
    monkeypatch.setattr(sys, "argv", ["nfm", "prepare"])

    def run(**section):
        params = with_overrides(read_mapping(ROOT / "params.yaml"), {"data": section})
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        try:
            main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err.splitlines()
        return 0, capsys.readouterr().err.splitlines()

    return run


def draw(folder: Path, classes: str = "ab") -> None:
    for place, name in enumerate(classes):
        for number in range(8):
            save(folder / name / f"{number}.png", flat(100 * place + number))


def greys(folder: Path, name: str) -> list[int]:
    split = Split.open(folder / "artifacts" / "data" / name, verify=True)
    return split.raw(torch.arange(len(split)))[:, 0, 0, 0].tolist()


def test_a_bad_image_is_one_sentence_and_the_run_after_the_mend_is_whole(prepare, tmp_path):
    draw(tmp_path / "images")
    Image.new("CMYK", (8, 8)).save(tmp_path / "images" / "a" / "8.jpg")
    status, lines = prepare(**FOLDER)
    assert status == 2
    assert "8.jpg has the printing colours CMYK" in lines[-1]
    assert len([line for line in lines if line.startswith("nfm: ")]) == 1
    assert all(path.name.startswith(".") for path in (tmp_path / "artifacts" / "data").iterdir())
    assert not (tmp_path / "metrics").exists()
    (tmp_path / "images" / "a" / "8.jpg").unlink()
    assert prepare(**FOLDER)[0] == 0
    assert sorted(greys(tmp_path, "train") + greys(tmp_path, "test")) == [*range(8), *range(100, 108)]
    assert sorted(path.name for path in (tmp_path / "artifacts" / "data").iterdir()) == ["test", "train"]


def test_the_space_needed_is_said_before_the_first_image_is_read(prepare, tmp_path):
    draw(tmp_path / "images")
    (tmp_path / "images" / "a" / "bad.png").write_text("no image")
    _, lines = prepare(**FOLDER)
    assert lines[0].startswith("prepare  12 images to train on and 5 to measure on, 1x4x4: 0.0 MB to write")


def test_images_without_labels_are_prepared_without(prepare, tmp_path):
    draw(tmp_path / "images", "a")
    assert prepare(**FOLDER)[0] == 0
    manifest = read_json(tmp_path / "artifacts" / "data" / "train" / "manifest.json")
    assert (manifest["labels"], manifest["classes"], manifest["count"]) == (None, [], 6)
    assert read_json(tmp_path / "metrics" / "prepare.json") == {"train": 6, "test": 2, "classes": 0}


def test_cifar10_is_prepared_with_mirror_images_of_what_is_trained_on(prepare, tmp_path, monkeypatch):
    md5 = pack(tmp_path / "c.tar.gz", contents())
    monkeypatch.setattr(build, "cifar10", partial(build.cifar10, md5=md5))
    assert prepare(kind="cifar10", archive="c.tar.gz", flips=True, validation=0.25, seed=0)[0] == 0
    train, test = (Split.open(tmp_path / "artifacts" / "data" / name, verify=True) for name in ("train", "test"))
    assert len(train) + 2 * len(test) == 2 * 60
    pixels = train.raw(torch.arange(len(train)))
    assert sorted(map(bytes, pixels.flatten(1).numpy())) == sorted(map(bytes, pixels.flip(-1).flatten(1).numpy()))
    assert train.notes == test.notes == (
        "CIFAR-10, as published; the split test holds a share of 0.25 of the training images, and no test image; "
        "training images also mirrored"
    )  # fmt: skip


def test_imagenet_is_prepared_from_two_folders(prepare, tmp_path):
    draw(tmp_path / "train")
    draw(tmp_path / "val", "b")
    section = {
        "image_size": 4,
        "filter": "box",
        "flips": False,
        "limit": None,
        "validation": None,
        "seed": 0,
        "version": None,
    }
    assert prepare(kind="imagenet", train="train", test="val", **section)[0] == 0
    test = Split.open(tmp_path / "artifacts" / "data" / "test", verify=True)
    assert (test.shape, test.labels(torch.arange(8)).tolist()) == ((3, 4, 4), [1] * 8)
    assert prepare(kind="imagenet", train="train", test="none", **section)[0] == 2
