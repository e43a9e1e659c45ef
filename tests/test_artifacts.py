"""Files are whole or not there, say what they hold, and do not go unnoticed when damaged."""

import errno
import os

import pytest
import torch

from nfm.artifacts import atomic_path, digest, load_tensors, read_json, save_tensors, sha256, write_json
from nfm.errors import InputError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_file_is_not_there_before_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across devices would not be atomic
    assert path.read_text() == "content"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    write_json(tmp_path / "ours", {})
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, monkeypatch, code):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    for name, write in {"a": lambda path: write_json(path, 1), "b": lambda path: save_tensors(path, {}, {})}.items():
        with pytest.raises(InputError, match=f"no space.*{tmp_path / name}.*free"):
            write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_another_error_of_the_disk_stays_what_it_is(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_json(tmp_path / "file" / "below", {})


def test_json_comes_back_and_has_one_text_whatever_the_order_of_keys(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_json(first, {"b": [1.5, None, "é"], "a": {"d": True, "c": 1e-300}})
    write_json(second, {"a": {"c": 1e-300, "d": True}, "b": [1.5, None, "é"]})
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text(encoding="utf-8").endswith("}\n")
    assert read_json(first) == {"a": {"c": 1e-300, "d": True}, "b": [1.5, None, "é"]}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_not_finite_and_keeps_the_old_file(tmp_path, number):
    path = tmp_path / "metrics.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match=r"metrics\.json"):
        write_json(path, {"fd": [1.0, number]})
    assert read_json(path) == 1


@pytest.mark.parametrize("read", [read_json, load_tensors, sha256])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(InputError, match=f"{tmp_path / 'absent'} is missing"):
        read(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_corrupt_json_is_named(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is corrupt.*delete it"):
        read_json(path)


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): (100 * torch.rand(3, 5, generator=generator)).to(dtype) for dtype in DTYPES}
    return tensors | {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "turned": tensors["torch.float32"].T}


def test_tensors_and_header_come_back(tmp_path):
    path, header = tmp_path / "x.safetensors", {"format": "f", "model": {"shape": [1, 8, 8], "classes": None}}
    save_tensors(path, some_tensors(), header)
    tensors, found = load_tensors(path)
    assert found == header
    assert set(tensors) == set(some_tensors())
    for name, value in some_tensors().items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_tensors_that_share_memory_come_back(tmp_path):
    whole = torch.arange(10)
    save_tensors(tmp_path / "x", {"whole": whole, "part": whole[3:5], "again": whole}, {})
    tensors, _ = load_tensors(tmp_path / "x")
    assert tensors["part"].tolist() == [3, 4]
    assert torch.equal(tensors["whole"], tensors["again"])


def test_equal_tensors_give_equal_bytes_whatever_their_order(tmp_path):
    tensors, header = some_tensors(), {"a": 1, "b": 2}
    save_tensors(tmp_path / "x", tensors, header)
    save_tensors(tmp_path / "y", dict(reversed(tensors.items())), dict(reversed(header.items())))
    assert sha256(tmp_path / "x") == sha256(tmp_path / "y")


def test_every_changed_bit_of_the_tensors_and_every_truncation_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(16, dtype=torch.uint8)}, {"key": "k"})
    good = path.read_bytes()
    for place in range(len(good) - 16, len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(InputError, match=f"{path} is corrupt.*run the stage again"):
            load_tensors(path)
    for length in (0, 7, 20, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(InputError, match=f"{path} is corrupt"):
            load_tensors(path)


def test_no_changed_byte_of_the_header_gives_another_header(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(4)}, {"key": "value", "steps": 10})
    good = path.read_bytes()
    for place in range(8, len(good) - 32):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            tensors, header = load_tensors(path)
        except InputError:
            continue
        assert header in ({}, {"key": "value", "steps": 10})  # {}: the key's own name was hit; no stage takes it
        assert header == {} or torch.equal(tensors["a"], torch.arange(4))


def test_a_digest_is_a_function_of_content_alone():
    assert digest({"a": [1, 2.5], "b": None}) == digest({"b": None, "a": (1, 2.5)})
    different = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"a": True}, {"b": 1}, {}, None]
    assert len({digest(content) for content in different}) == len(different)


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # NIST's example
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
