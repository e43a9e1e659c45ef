"""Objects of a store as files: in full, once, checked, and going on where a call was cut off."""

import importlib.util
import shutil
from pathlib import Path

import boto3
import pytest
import torch

from nfm.build.data import make_source
from nfm.config import FolderData
from nfm.data import s3
from nfm.data.s3 import fetch
from nfm.errors import InputError
from tests.pictures import png


@pytest.fixture
def store(bucket, monkeypatch, request):
    """A client of the store, whose address is in the environment; and an url of this test's own."""
    for key, value in bucket.items():
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3" if key == "ADDRESS" else key, value)
    return boto3.client("s3"), f"s3://store/{request.node.name}"


def put(store, files: dict[str, bytes]) -> None:
    client, url = store
    for name, content in files.items():
        client.put_object(Bucket="store", Key=f"{url.removeprefix('s3://store/')}/{name}", Body=content)


def put_in_parts(store, name: str, content: bytes) -> None:
    client, url = store
    where = {"Bucket": "store", "Key": f"{url.removeprefix('s3://store/')}/{name}"}
    upload = client.create_multipart_upload(**where)["UploadId"]
    tag = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=content)["ETag"]
    parts = {"Parts": [{"ETag": tag, "PartNumber": 1}]}
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)


@pytest.fixture
def fetched(monkeypatch):
    """The names of the objects that are downloaded."""
    names: list[str] = []
    download = s3._download

    def noted(client, bucket, item):
        names.append(item.path.name)
        return download(client, bucket, item)

    monkeypatch.setattr(s3, "_download", noted)
    return names


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".s3")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


FILES = {f"{kind}/{i}.png": f"{kind} {i}".encode() for kind in ("dark", "light") for i in range(4)}


def test_a_prefix_comes_in_full_and_once(store, fetched, tmp_path):
    put(store, FILES)
    put_in_parts(store, "dark/parts.png", b"in parts")
    folder = fetch(store[1], tmp_path, "data.folder")
    assert content(folder) == FILES | {"dark/parts.png": b"in parts"}
    fetched.clear()
    assert fetch(store[1], tmp_path, "data.folder") == folder
    assert fetched == []


def test_only_what_lies_below_the_prefix_comes_without_marks_and_hidden_names(store, tmp_path):
    put(store, {"a.png": b"a", "sub/": b"", ".hidden": b"", "sub/.DS_Store": b""})
    client, url = store
    client.put_object(Bucket="store", Key=f"{url.removeprefix('s3://store/')}2/b.png", Body=b"b")
    for way in (url, f"{url}/"):
        assert content(fetch(way, tmp_path, "data.folder")) == {"a.png": b"a"}


def test_a_single_object_comes_as_a_file(store, tmp_path):
    put(store, {"c.tar.gz": b"archive", "c.tar.gz.md5": b"other"})
    path = fetch(f"{store[1]}/c.tar.gz", tmp_path, "data.archive")
    assert path.name == "c.tar.gz"
    assert path.read_bytes() == b"archive"


def test_a_fetch_that_is_cut_off_goes_on_with_what_is_missing(store, tmp_path, monkeypatch):
    put(store, FILES)
    download, names = s3._download, []

    def cut(client, bucket, item):
        if item.path.name == "2.png":
            raise KeyboardInterrupt
        return download(client, bucket, item)

    monkeypatch.setattr(s3, "_download", cut)
    monkeypatch.setattr(s3, "THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        fetch(store[1], tmp_path, "data.folder")
    kept = [path.name for path in tmp_path.rglob("*.png")]
    assert kept
    (folder,) = tmp_path.iterdir()
    (folder / "dark" / ".2.png.part").write_bytes(b"what a kill leaves")
    monkeypatch.setattr(s3, "_download", lambda *a: names.append(a[2].path.name) or download(*a))
    assert content(fetch(store[1], tmp_path, "data.folder")) == FILES
    assert len(names) == len(FILES) - len(kept)


@pytest.mark.parametrize("put_object", [lambda s, n, c: put(s, {n: c}), put_in_parts], ids=["whole", "in parts"])
def test_a_damaged_file_and_a_changed_object_come_again(store, fetched, tmp_path, put_object):
    put(store, FILES)
    put_object(store, "dark/x.png", b"first")
    path = fetch(store[1], tmp_path, "data.folder") / "dark" / "x.png"
    for arrange in (lambda: path.write_bytes(b"thirs"), lambda: put_object(store, "dark/x.png", b"other")):
        arrange()
        fetched.clear()
        fetch(store[1], tmp_path, "data.folder")
        assert fetched == ["x.png"]
    assert path.read_bytes() == b"other"
    put(store, {"dark/x.png": b"whole"})  # what was noted of an upload in parts must not outlive it
    fetch(store[1], tmp_path, "data.folder")
    fetched.clear()
    fetch(store[1], tmp_path, "data.folder")
    assert (fetched, path.read_bytes()) == ([], b"whole")


def test_a_file_whose_object_is_gone_goes_too(store, tmp_path):
    put(store, FILES)
    put_in_parts(store, "grey/0.png", b"0")
    folder = fetch(store[1], tmp_path, "data.folder")
    for name in ("grey/0.png", "dark/1.png"):
        store[0].delete_object(Bucket="store", Key=f"{store[1].removeprefix('s3://store/')}/{name}")
    assert content(fetch(store[1], tmp_path, "data.folder")) == {k: v for k, v in FILES.items() if k != "dark/1.png"}
    assert not (folder / "grey").exists()


class Noisy:
    """A client over a line that damages the first downloads."""

    def __init__(self, client, times: int) -> None:
        self._client, self._times = client, times

    def __getattr__(self, name):
        return getattr(self._client, name)

    def get_object(self, **arguments):
        answer = self._client.get_object(**arguments)
        if self._times > 0:
            self._times -= 1
            body = bytearray(answer["Body"].read())
            body[0] ^= 1
            answer["Body"] = type("Body", (), {"iter_chunks": lambda _, size: iter([bytes(body)])})()
        return answer


def test_a_damaged_arrival_is_tried_again_and_then_named(store, tmp_path, monkeypatch):
    put(store, {"a.png": b"content"})
    monkeypatch.setattr(s3, "open_client", lambda: Noisy(store[0], 2))
    assert content(fetch(store[1], tmp_path / "mended", "data.folder")) == {"a.png": b"content"}
    monkeypatch.setattr(s3, "open_client", lambda: Noisy(store[0], 3))
    with pytest.raises(InputError, match=r"a\.png arrived 3 times with another checksum"):
        fetch(store[1], tmp_path / "lost", "data.folder")
    assert content(tmp_path / "lost") == {}


def denied(store, monkeypatch):
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # the server is a thread of this process
    return store[1], "InvalidAccessKeyId|AccessDenied|Forbidden"


def unreachable(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    return store[1], "Could not connect"


def no_address(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nowhere")
    return store[1], "Invalid endpoint: nowhere"


def no_credentials(store, monkeypatch):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    return store[1], "Unable to locate credentials"


def empty(store, monkeypatch):
    return f"{store[1]}/nothing", "there is no object"


def no_bucket(store, monkeypatch):
    return "s3://absent/x", "NoSuchBucket"


def no_bucket_named(store, monkeypatch):
    return "s3://", "expected s3://bucket/prefix"


def path_upwards(store, monkeypatch):
    put(store, {"../evil.png": b""})
    return store[1], r"evil.png' has a key that is no file's path"


def small_disk(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    return store[1], "needs 0.0 MB for 8 objects"


def no_boto3(store, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return store[1], "needs boto3"


MISTAKES = [
    denied, unreachable, no_address, no_credentials, empty, no_bucket, no_bucket_named,
    path_upwards, small_disk, no_boto3,
]  # fmt: skip


@pytest.mark.parametrize("make", MISTAKES, ids=[make.__name__ for make in MISTAKES])
def test_a_store_that_gives_nothing_is_named_and_nothing_is_left(store, tmp_path, monkeypatch, make):
    put(store, FILES)
    url, message = make(store, monkeypatch)
    with pytest.raises(InputError, match=message) as caught:
        fetch(url, tmp_path, "data.folder")
    assert "\n" not in str(caught.value)
    assert "data.folder" in str(caught.value) or "evil" in str(caught.value) or "free" in str(caught.value)
    assert content(tmp_path) == {}


def test_a_folder_in_a_store_is_a_data_set(store, tmp_path):
    put(store, {f"{kind}/{i}.png": png(100 * (kind == "light") + i) for kind in ("dark", "light") for i in range(4)})
    section = {"kind": "folder", "folder": store[1], "image_size": 4, "channels": 1, "filter": "box", "seed": 0}
    section |= {"test_fraction": 0.5, "validation": None, "flips": False, "limit": None, "version": None}
    source = make_source(FolderData(**section), tmp_path)
    assert source.name == Path(store[1]).name
    grey = torch.cat([source.train.images(), source.test.images()])[:, 0, 0, 0]
    assert sorted(grey.tolist()) == [0, 1, 2, 3, 100, 101, 102, 103]
    assert torch.equal(torch.cat([source.train.labels, source.test.labels]), (grey >= 100).long())
