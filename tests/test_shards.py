"""Shards: what is written, what is read back, what is kept of an interrupted run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nfm.artifacts import read_json
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split, from_uint8, to_uint8
from nfm.data.writing import write_splits
from nfm.errors import InputError


def examples(count: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that all differ and name their own label in the first pixel."""
    labels = torch.arange(count) % classes
    images = torch.arange(count * 2 * 3 * 3).remainder(251).to(torch.uint8).reshape(-1, 2, 3, 3)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels.to(torch.uint8), torch.arange(count)
    return images, labels


def made(count: int, labelled: bool = True) -> Source:
    images, labels = examples(count)
    train = Examples.of(images, labels if labelled else None)
    return Source("made", (2, 3, 3), ("a", "b", "c") if labelled else (), train, train.subset(torch.arange(3)), "")


def write(path: Path, count: int = 40, seed: int = 0, shard_bytes: int = 10**6) -> Split:
    write_splits(path, made(count), seed=seed, shard_bytes=shard_bytes)
    return Split.open(path / "train", verify=True)


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


# Shards


@pytest.mark.parametrize("shard_bytes", [1, 100, 18 * 7, 10**6])
def test_shards_hold_every_image_once_with_its_label(tmp_path, shard_bytes):
    split = write(tmp_path, shard_bytes=shard_bytes)
    images, labels = examples(40)
    everything = torch.arange(len(split))
    numbers = split.raw(everything)[:, 0, 0, 1].long()
    assert numbers.sort().values.tolist() == list(range(40))
    assert torch.equal(split.raw(everything), images[numbers])
    assert torch.equal(split.labels(everything), labels[numbers])
    sizes = [path.stat().st_size for path in (tmp_path / "train").glob("*.u8")]
    assert max(sizes) <= max(shard_bytes, 18)


def test_rows_are_read_in_the_order_asked_for_across_shards(tmp_path):
    split = write(tmp_path, shard_bytes=18 * 7)
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
        write(tmp_path).raw(torch.tensor(index))


def test_reading_changes_neither_the_shard_nor_what_was_read_before(tmp_path):
    split = write(tmp_path)
    first = split.raw(torch.arange(3))
    kept = first.clone()
    first.zero_()
    assert torch.equal(split.raw(torch.arange(3)), kept)


def test_the_manifest_counts_what_is_there(tmp_path):
    write(tmp_path)
    manifest = read_json(tmp_path / "train" / "manifest.json")
    assert manifest["count_per_class"] == {"a": 14, "b": 13, "c": 13}
    assert manifest["count"] == sum(entry["count"] for entry in manifest["shards"]) == 40


def test_images_without_labels_have_none(tmp_path):
    write_splits(tmp_path, made(5, labelled=False), seed=0)
    split = Split.open(tmp_path / "train")
    assert split.labels(torch.arange(5)) is None
    assert split.classes == ()


def test_labels_beyond_the_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="labels run from 0 to 2, expected 0 to 1"):
        write_splits(tmp_path, replace(made(5), classes=("a", "b")), seed=0)


def test_a_truncated_shard_is_named(tmp_path):
    write(tmp_path, shard_bytes=18 * 7)
    path = tmp_path / "train" / "images-00001.u8"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"images-00001\.u8 holds 125 bytes, expected 126"):
        Split.open(tmp_path / "train")


@pytest.mark.parametrize("name", ["images-00001.u8", "labels.i64"])
def test_a_flipped_bit_is_found_when_asked_for(tmp_path, name):
    write(tmp_path, shard_bytes=18 * 7)
    path = tmp_path / "train" / name
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    Split.open(tmp_path / "train")
    with pytest.raises(InputError, match=name):
        Split.open(tmp_path / "train", verify=True)


@pytest.mark.parametrize("name", ["images-00000.u8", "labels.i64", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / "train" / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing.*prepare"):
        Split.open(tmp_path / "train")


def test_a_second_write_replaces_the_first_wholly(tmp_path):
    write(tmp_path, count=40, shard_bytes=18)
    assert len(write(tmp_path, count=7)) == 7
    assert len(list((tmp_path / "train").glob("*.u8"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"train", "test"}


# Interrupted writes

BYTES = 18 * 7  # 6 shards of 40 images


def counted(source: Source, fail_at: int | None = None) -> tuple[Source, list[int]]:
    """A source that notes the rows read and stops at one of them."""
    seen: list[int] = []

    def read(index):
        for row in index.tolist():
            if row == fail_at:
                raise InputError("cut off")
            seen.append(row)
            yield from source.train.read(torch.tensor([row]))

    return replace(source, train=replace(source.train, read=read)), seen


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def cut_off(tmp_path):
    """A folder whose write was cut off in the fourth shard; the whole one beside it, and the train split's order."""
    write(tmp_path / "whole", shard_bytes=BYTES)
    order = Split.open(tmp_path / "whole" / "train").raw(torch.arange(40))[:, 0, 0, 1].tolist()
    source, _ = counted(made(40), fail_at=order[24])
    with pytest.raises(InputError, match="cut off"):
        write_splits(tmp_path / "cut", source, seed=0, key="k", shard_bytes=BYTES)
    return tmp_path / "cut", order


def go_on(folder: Path, source: Source | None = None, key: str = "k") -> list[int]:
    source, seen = counted(source or made(40))
    write_splits(folder, source, seed=0, key=key, shard_bytes=BYTES)
    return seen


def test_a_write_that_is_cut_off_shows_no_split_and_goes_on_with_the_missing_shards(cut_off):
    folder, order = cut_off
    assert not (folder / "train").exists()
    assert not (folder / "test").exists()
    (folder / ".train.partial" / ".images-00003.u8.0abc.tmp").write_bytes(b"what a kill leaves")
    assert go_on(folder) == order[21:]
    assert content(folder) == content(folder.parent / "whole")


def test_a_finished_shard_that_is_damaged_is_written_again(cut_off):
    folder, order = cut_off
    path = folder / ".train.partial" / "images-00001.u8"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert go_on(folder) == order[7:14] + order[21:]
    assert content(folder) == content(folder.parent / "whole")


def test_an_image_that_has_changed_has_its_shard_written_again(cut_off):
    folder, order = cut_off
    images, labels = examples(40)
    images[order[0], 1] = 7
    assert go_on(folder, replace(made(40), train=Examples.of(images, labels))) == order[:7] + order[21:]
    assert Split.open(folder / "train", verify=True).raw(torch.tensor([0]))[0, 1].unique().tolist() == [7]


@pytest.mark.parametrize("change", ["key", "count"])
def test_shards_of_other_settings_or_images_are_not_taken_over(cut_off, change):
    folder, _ = cut_off
    seen = go_on(folder, key="other") if change == "key" else go_on(folder, made(39))
    assert sorted(seen) == list(range(40 if change == "key" else 39))


def test_a_write_that_fails_leaves_both_splits_as_they_were(tmp_path):
    write(tmp_path)
    before = content(tmp_path)
    broken = replace(made(40).test, read=counted(made(40), fail_at=1)[0].train.read)
    with pytest.raises(InputError, match="cut off"):
        write_splits(tmp_path, replace(made(30), test=broken), seed=1)
    assert {k: v for k, v in content(tmp_path).items() if ".partial" not in k} == before


def test_what_does_not_fit_the_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    lines: list[str] = []
    write_splits(tmp_path / "fits", made(40), seed=0, say=lines.append)
    assert "0.0 MB to write" in lines[0]
    usage = type(shutil.disk_usage(tmp_path))(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    write(tmp_path / "small", count=30)  # 33 images of 18 bytes, 33 labels of 8
    with pytest.raises(InputError, match=r"needs 0\.0 MB for 40 images .* are free there"):
        write(tmp_path / "large", count=40)
    assert list((tmp_path / "large").iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """20,000 images are 200 MB more than 4,000; a shard is 32 MB here."""
    script = Path(__file__).parents[1] / "benchmarks" / "prepare.py"

    def peak(count: int) -> int:
        options = ["--images", count, "--folder", tmp_path / "made", "--shard-bytes", 2**25]
        answer = subprocess.run(
            [sys.executable, script, *map(str, options)], capture_output=True, text=True, check=True
        )
        return json.loads(answer.stdout)["peak_memory_mb"]

    assert peak(20_000) < peak(4_000) + 40
    assert not (tmp_path / "made").exists()
