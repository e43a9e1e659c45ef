"""CIFAR-10's python archive: what is read, and what is refused before it can run."""

import hashlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from nfm.data.cifar10 import BATCHES, CLASSES
from nfm.data.source import cifar10
from nfm.errors import InputError
from tests.pictures import tar

NAMES = (*BATCHES["train"], *BATCHES["test"])


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled it: protocol 2, text and the array's buffer as byte strings."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text

    def number(value: int) -> bytes:
        return b"M" + struct.pack("<H", value)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    shape = b"".join(map(number, pixels.shape)) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    items = string(b"data") + array + string(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def contents(count: int = 12) -> dict[str, bytes]:
    """Batches of random images whose first pixel is the batch's number."""
    rng, made = np.random.default_rng(0), {"cifar-10-batches-py/batches.meta": b"not read"}
    for number, name in enumerate(NAMES):
        pixels = rng.integers(0, 256, (count, 3072), np.uint8)
        pixels[:, 0] = number
        made[name] = python2_pickle(pixels, rng.integers(0, 10, count).tolist())
    # The published archive does not hold the batches in their order either.
    return dict(reversed(made.items()))


def pack(path: Path, files: dict[str, bytes]) -> str:
    """Writes an archive; returns its MD5."""
    tar(path, files, "w:gz")
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_images_and_labels_are_those_of_the_batches_in_their_order(tmp_path):
    files = contents()
    source = cifar10(tmp_path / "c.tar.gz", pack(tmp_path / "c.tar.gz", files))
    batches = [pickle.loads(files[name], encoding="bytes") for name in NAMES]
    for split, of_split in ((source.train, batches[:5]), (source.test, batches[5:])):
        assert split.labels.tolist() == [label for batch in of_split for label in batch[b"labels"]]
        planes = np.concatenate([batch[b"data"] for batch in of_split])
        images = split.images()
        # A row is the red plane, then green, then blue, each row after row.
        for row, channel, y, x in ((0, 0, 0, 1), (5, 1, 31, 2), (11, 2, 7, 0)):
            assert images[row, channel, y, x] == planes[row, 1024 * channel + 32 * y + x]
        assert images.shape == (len(planes), 3, 32, 32)
    assert source.classes == CLASSES


def test_arrays_pickled_by_todays_numpy_are_read_too(tmp_path):
    files = contents()
    for name in NAMES:
        batch = pickle.loads(files[name], encoding="bytes")
        files[name] = pickle.dumps(batch, protocol=2)
    source = cifar10(tmp_path / "c.tar.gz", pack(tmp_path / "c.tar.gz", files))
    assert source.train.images()[:, 0, 0, 0].tolist() == [number for number in range(5) for _ in range(12)]


class Command:
    """Runs a command when it is unpickled by pickle itself."""

    def __init__(self, call, *arguments):
        self.made = call, arguments

    def __reduce__(self):
        return self.made


def runs_a_command(files, marker):
    return {NAMES[2]: pickle.dumps({b"data": Command(os.system, f"touch {marker}"), b"labels": []}, protocol=2)}


def evaluates_python(files, marker):
    return {NAMES[0]: pickle.dumps(Command(eval, f"open({str(marker)!r}, 'w')"), protocol=2)}


def imports_a_codec(files, marker):
    return {NAMES[0]: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00zlib\x86R."}


def is_no_pickle(files, marker):
    return {NAMES[5]: b"hello"}


def is_cut(files, marker):
    return {NAMES[5]: files[NAMES[5]][:-100]}


def holds_other_arrays(files, marker):
    return {NAMES[1]: python2_pickle(np.zeros((4, 3071), np.uint8), [0] * 4)}


def has_a_label_of_11(files, marker):
    return {NAMES[1]: python2_pickle(np.zeros((1, 3072), np.uint8), [11])}


WRONG = {
    runs_a_command: r"data_batch_3 cannot be read as arrays and bytes \(it asks for posix\.system",
    evaluates_python: r"data_batch_1 cannot be read .*eval",
    imports_a_codec: "data_batch_1 cannot be read .*zlib",
    is_no_pickle: "test_batch cannot be read",
    is_cut: "test_batch cannot be read",
    holds_other_arrays: r"data_batch_2 holds no uint8 `data` of shape \(N, 3072\)",
    has_a_label_of_11: "data_batch_2 holds no",
}


@pytest.mark.parametrize(("make", "message"), WRONG.items(), ids=[make.__name__ for make in WRONG])
def test_a_batch_with_anything_but_arrays_is_refused_and_not_run(tmp_path, make, message):
    files, marker = contents(), tmp_path / "marker"
    md5 = pack(tmp_path / "c.tar.gz", files | make(files, marker))
    with pytest.raises(InputError, match=message) as caught:
        cifar10(tmp_path / "c.tar.gz", md5)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_another_archive_than_the_published_one_is_refused_unread(tmp_path):
    pack(tmp_path / "c.tar.gz", contents())
    with pytest.raises(InputError, match=r"has the MD5 .* expected c58f30108f718f92721af3b95e74349a"):
        cifar10(tmp_path / "c.tar.gz")


def test_a_truncated_a_foreign_and_a_missing_archive_are_named(tmp_path):
    path = tmp_path / "c.tar.gz"
    pack(path, contents())
    for content, message in ((path.read_bytes()[:-2000], "does not unpack"), (b"hello", "does not unpack")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            cifar10(path, hashlib.md5(content).hexdigest())
    with pytest.raises(InputError, match="holds no cifar-10-batches-py/data_batch_1"):
        cifar10(path, pack(path, {"other": b""}))
    with pytest.raises(InputError, match=r"data\.archive is .*absent"):
        cifar10(tmp_path / "absent")
