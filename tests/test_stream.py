"""Training images that stay in an S3 store: their order, the cache, and every stage on them."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import boto3
import pytest
import torch
import yaml

from nfm.config import parse_params, read_mapping, with_overrides
from nfm.data.shards import Split
from nfm.data.stream import Cache, Store, Stream
from nfm.data.writing import write_splits
from nfm.errors import InputError
from nfm.store import entry_of
from nfm.train.order import Windows, batch_indices
from tests.command import nfm
from tests.faulty import Way, way_to
from tests.test_shards import made
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
IMAGE = 18  # bytes of one of test_shards' images


@pytest.fixture
def way(bucket, monkeypatch):
    """A way to the store, whose address is in the environment."""
    for key, value in bucket.items():
        if key != "ADDRESS":
            monkeypatch.setenv(key, value)
    with way_to(bucket["ADDRESS"]) as way:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", way.address)
        yield way


@pytest.fixture
def url(request):
    return f"s3://store/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


def downloads(way: Way) -> list[str]:
    return [request.rpartition("/")[2] for request in way.asked if request.startswith("GET")]


# Order

COUNTS = (7, 7, 7, 7, 7, 3)


@pytest.mark.parametrize("width", [1, 2, 4, 6, 9])
def test_every_epoch_is_a_permutation_that_goes_through_a_few_shards_at_a_time(width):
    windows, count = Windows(COUNTS, width), sum(COUNTS)
    shard = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        rows = batch_indices(count, count, seed, epoch, windows)
        assert rows.sort().values.tolist() == list(range(count))
        place = 0
        for window in windows.shards(seed, epoch):
            assert len(window) <= width
            part = rows[place : place + sum(COUNTS[k] for k in window)]
            assert set(shard[part].tolist()) == set(window)
            assert len(part) < 8 or part.tolist() != part.sort().values.tolist()
            place += len(part)
        orders.append(rows.tolist())
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(("width", "batch"), [(1, 3), (2, 4), (2, 10), (6, 5), (1, 20), (3, 100)])
def test_what_a_batch_needs_is_said_before_it_with_the_window_behind_it(width, batch):
    windows, count = Windows(COUNTS, width), sum(COUNTS)
    shard = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    smallest = {1: 3, 2: 10, 3: 17, 6: 38}[width]  # images of a window, with the short shard
    before: set[int] = set()
    for step in range(30):
        rows = batch_indices(count, batch, 3, step, windows)
        assert torch.equal(rows, batch_indices(count, batch, 3, step, windows))
        needed = windows.needed(batch, 3, step)
        touched = list(dict.fromkeys(shard[rows].tolist()))
        assert set(touched) <= set(needed)
        assert len(set(needed)) == len(needed)
        if step and batch <= smallest:
            assert set(touched) <= before  # announced while the batch before was read
        before = set(needed)


# Splits in a store


def streamed(folder: Path, url: str, count: int = 40, each: int = 8, cache: int = 10**6) -> Split:
    """Images in shards of `each`, read through a cache of so many bytes."""
    write_splits(folder, made(count), seed=0, shard_bytes=each * IMAGE, store=Store(url))
    return Split.open(folder / "train", cache=Cache(folder / "cache", cache))


def test_shards_go_to_the_store_one_by_one_and_come_back_as_they_were(way, url, tmp_path):
    split = streamed(tmp_path, url)
    write_splits(tmp_path / "local", made(40), seed=0, shard_bytes=8 * IMAGE)
    local = Split.open(tmp_path / "local" / "train")
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["labels.i64", "manifest.json"]
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == [
        "images-00000.u8",
        "labels.i64",
        "manifest.json",
    ]
    assert split.counts == local.counts == (8,) * 5
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for rows in (torch.arange(40), order, order[:3], torch.tensor([39]), torch.arange(0)):
        assert torch.equal(split.raw(rows), local.raw(rows))
        assert torch.equal(split.labels(rows), local.labels(rows))
    client = boto3.client("s3")
    names = client.list_objects_v2(Bucket="store", Prefix=url.removeprefix("s3://store/"))["Contents"]
    assert len(names) == 5


def test_a_preparation_that_is_cut_off_goes_on_with_the_shards_that_are_missing(way, url, tmp_path):
    way.cut = lambda request: request.startswith("PUT") and sum(r.startswith("PUT") for r in way.asked) > 2
    with pytest.raises(InputError, match="stream is s3://store/"):
        streamed(tmp_path, url)
    assert not (tmp_path / "train").exists()
    way.cut = lambda request: False
    way.asked.clear()
    split = streamed(tmp_path, url)
    assert sum(request.startswith("PUT") for request in way.asked) == 3
    assert len(split.raw(torch.arange(40))) == 40
    way.asked.clear()
    write_splits(tmp_path / "again", made(40), seed=0, shard_bytes=8 * IMAGE, store=Store(url))
    assert not any(request.startswith("PUT") for request in way.asked)  # they are there


def test_the_disk_needs_room_for_one_shard_at_a_time(way, url, tmp_path, monkeypatch):
    seen = []
    put = Store.put

    def noted(self, path, entry):
        seen.append([file.name for file in path.parent.glob("images-*")])
        put(self, path, entry)

    monkeypatch.setattr(Store, "put", noted)
    lines: list[str] = []
    write_splits(tmp_path, made(4000), seed=0, shard_bytes=500 * IMAGE, store=Store(url), say=lines.append)
    assert [len(files) for files in seen] == [1] * 8
    labels, shard, test = 8 * 4000, 500 * IMAGE, 3 * (IMAGE + 8)
    assert f"{(labels + shard + test) / 1e6:,.1f} MB to write" in lines[0]


# The cache


def shards(way: Way, url: str, folder: Path, count: int = 6, size: int = 1000) -> list[dict]:
    """Puts shards of rows of one byte into the store; returns their entries."""
    entries = []
    for number in range(count):
        path = folder / f"{number}.u8"
        path.write_bytes(bytes([number]) * size)
        entries.append(entry_of(path) | {"count": size})
        Store(url).put(path, entries[-1])
    way.asked.clear()
    return entries


def taken(folder: Path) -> int:
    """Bytes of the files in a cache, while no room is made there; one that is renamed meanwhile counts once."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while True:
            try:
                return sum({stat.st_ino: stat.st_size for stat in map(Path.stat, folder.iterdir())}.values())
            except FileNotFoundError:
                time.sleep(0.001)


def test_the_cache_never_takes_more_than_its_limit(way, url, tmp_path):
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 3000)
    cache.folder.mkdir()
    stream, most, done = Stream(Store(url), entries, "u1", (), cache), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], taken(tmp_path / "cache"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(24):
        first = step // 2 % 6
        stream.expect([first, (first + 1) % 6, (first + 2) % 6])
        assert stream(first)[0] == first
        assert stream((first + 1) % 6)[-1] == (first + 1) % 6
    done.set()
    watcher.join()
    assert 2000 < most[0] <= 3000


def test_what_is_expected_comes_ahead_and_what_is_not_comes_all_the_same(way, url, tmp_path):
    entries = shards(way, url, tmp_path)
    stream = Stream(Store(url), entries, "u1", (), Cache(tmp_path / "cache", 2000))
    stream.expect([2, 4, 5])  # one more than fits
    assert [stream(2)[0], stream(4)[0]] == [2, 4]
    assert sorted(downloads(way)) == sorted(entries[k]["sha256"] for k in (2, 4))
    assert stream(0)[0] == 0


def test_shards_in_a_row_are_each_brought_once_and_the_next_one_ahead(way, url, tmp_path):
    entries = shards(way, url, tmp_path)
    stream = Stream(Store(url), entries, "u1", (), Cache(tmp_path / "cache", 2000))
    for k in range(6):
        assert stream(k)[0] == k
        assert set(downloads(way)) >= {entry["sha256"] for entry in entries[: k + 1]}
    assert len(downloads(way)) <= 7  # the first again, for whoever begins anew


def test_threads_and_processes_share_one_download(way, url, tmp_path):
    way.late = 0.2
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 10**6)
    found: list[Path] = []
    code = (
        "import sys, json; from pathlib import Path; from nfm.data.stream import Cache, Store\n"
        f"Cache(Path({str(tmp_path / 'cache')!r}), 10**6).bring(Store({url!r}), json.loads(sys.argv[1]), frozenset())"
    )
    other = subprocess.Popen([sys.executable, "-c", code, json.dumps(entries[0])], cwd=ROOT)
    threads = [
        threading.Thread(target=lambda: found.append(cache.bring(Store(url), entries[0], frozenset())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait() == 0
    assert len(downloads(way)) == 1
    assert {path.read_bytes() for path in found} == {bytes(1000)}
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name.endswith(".part")] == []


def test_what_a_killed_process_left_goes_and_what_another_fetches_stays(way, url, tmp_path):
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 2000)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f".{'0' * 64}.part").write_bytes(bytes(1500))
    cache.bring(Store(url), entries[0], frozenset())
    cache.bring(Store(url), entries[1], frozenset({entries[0]["sha256"]}))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock") == sorted(
        entry["sha256"] for entry in entries[:2]
    )


def test_a_shard_that_is_damaged_on_the_disk_comes_anew(way, url, tmp_path):
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 2000)
    path = cache.bring(Store(url), entries[3], frozenset())
    path.write_bytes(bytes(1000))
    assert cache.bring(Store(url), entries[3], frozenset()).read_bytes() == bytes([3]) * 1000


@pytest.mark.parametrize("damaged", [bytes(999), bytes([1]) * 1000, bytes(5000)], ids=["short", "other", "long"])
def test_one_that_arrives_damaged_is_named_and_leaves_nothing(way, url, tmp_path, damaged):
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 2000)
    key = f"{url.removeprefix('s3://store/')}/{entries[0]['sha256']}"
    boto3.client("s3").put_object(Bucket="store", Key=key, Body=damaged)
    with pytest.raises(InputError, match=r"arrived 3 times with another size or SHA-256; delete it there"):
        cache.bring(Store(url), entries[0], frozenset())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_one_that_is_missing_is_named_with_what_puts_it_back(way, url, tmp_path):
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 2000)
    key = f"{url.removeprefix('s3://store/')}/{entries[0]['sha256']}"
    boto3.client("s3").delete_object(Bucket="store", Key=key)
    with pytest.raises(InputError, match=rf"object {key} is missing; `dvc repro --force prepare` puts back"):
        cache.bring(Store(url), entries[0], frozenset())


def test_an_outage_is_waited_out_for_some_tries_and_then_named(way, url, tmp_path, monkeypatch):
    entries, cache = shards(way, url, tmp_path), Cache(tmp_path / "cache", 2000)
    way.cut = lambda request: len(way.asked) <= 2
    assert cache.bring(Store(url), entries[0], frozenset()).stat().st_size == 1000
    way.cut = lambda request: True
    for module in ("s3", "stream"):
        monkeypatch.setattr(f"nfm.data.{module}.TRIES", 1)
    with pytest.raises(InputError, match=r"stream is s3://store/.*, which the store does not give"):
        cache.bring(Store(url), entries[1], frozenset())


# Stages

STREAMED = {
    **TINY,
    "couplings": ["independent", "teacher"],
    "features.train.window": 2,
    "teacher.train.window": 2,
    "student.train.window": 3,
    "teacher.train.steps": 40,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a project of the handwritten digits in shards of 100 images, 1257 to train on; runs its stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFM_TRACKER", "none")
    monkeypatch.setattr("nfm.stages.prepare.write_splits", partial(write_splits, shard_bytes=6400))

    def run(stages: list[str], **changes: object) -> int:
        params = with_overrides(read_mapping(ROOT / "params.yaml"), STREAMED | changes)
        Path("params.yaml").write_text(yaml.safe_dump(params))
        return max(nfm(monkeypatch, *stage.split()) for stage in stages)

    return run


STAGES = [
    "prepare",
    "features",
    "reference",
    "teacher --seed 0",
    "couple --coupling teacher --seed 0",
    "couple --coupling independent --seed 0",
    "student --coupling teacher --seed 0",
    "student --coupling independent --seed 0",
    "evaluate --coupling teacher --seed 0",
    "evaluate --coupling independent --seed 0",
    "evaluate --teacher --seed 0",
]


def figures(path: Path) -> object:
    """What a file says, without the time that it took."""
    if path.suffix != ".json":
        return path.read_bytes()
    return {key: value for key, value in json.loads(path.read_text()).items() if "seconds" not in key}


def test_every_stage_makes_of_streamed_images_what_it_makes_of_those_on_the_disk(way, url, project, tmp_path):
    made_of = {}
    for name, changes in {"disk": {}, "store": {"stream": url, "run.cache_gb": 7 * 6400e-9}}.items():
        assert project(STAGES, **changes) == 0
        kept = [*Path("artifacts").rglob("*.safetensors"), *Path("metrics").rglob("*.json")]
        made_of[name] = {str(path): figures(path) for path in kept}
        if name == "store":
            assert 0 < taken(tmp_path / ".cache" / "shards") <= 7 * 6400
        shutil.rmtree("artifacts")
        shutil.rmtree("metrics")
    assert made_of["disk"] == made_of["store"]
    assert {Path(path).parts[1] for path in made_of["disk"]} >= {"teacher", "student", "features", "reference"}


def test_a_training_on_streamed_images_goes_on_from_its_checkpoint_to_the_same_bits(way, url, project, tmp_path):
    given = {"stream": url, "run.cache_gb": 7 * 6400e-9, "run.checkpoint_every": 5, "run.log_every": 1}
    assert project(["prepare", "teacher --seed 0"], **given) == 0
    weights = Path("artifacts/teacher/0/teacher.safetensors")
    whole = weights.read_bytes()
    weights.unlink()
    shutil.rmtree(tmp_path / ".cache")
    shutil.rmtree("artifacts/work", ignore_errors=True)
    child = subprocess.Popen([sys.executable, "-m", "nfm", "teacher", "--seed", "0"], stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if "update 12" in line:
            os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not weights.exists()
    assert project(["teacher --seed 0"], **given) == 0
    assert weights.read_bytes() == whole


REFUSED = {
    "no window": (
        {"teacher.train.window": None},
        r"teacher@0: train\.window is null, .*13 shards.*holds 7.*set it to 3",
    ),
    "a wide window": ({"teacher.train.window": 6}, r"train\.window is 6, .*holds 7 at a time.*set it to 3 at most"),
    "no room": ({"run.cache_gb": 1e-9}, r"holds 0 at a time.*; raise run\.cache_gb$"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_cache_that_is_too_small_is_told_before_anything_is_trained(way, url, project, capsys, changes, sentence):
    given = {"stream": url, "run.cache_gb": 7 * 6400e-9}
    assert project(["prepare"], **given) == 0
    capsys.readouterr()
    assert project(["teacher --seed 0"], **(given | changes)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nfm: ")]
    assert len(lines) == 1
    assert re.search(sentence, lines[0])


def test_a_store_that_cannot_be_reached_is_one_sentence_and_the_checkpoint_stays(
    way, url, project, capsys, monkeypatch
):
    for module in ("s3", "stream"):
        monkeypatch.setattr(f"nfm.data.{module}.TRIES", 1)
    given = {"stream": url, "run.cache_gb": 7 * 6400e-9, "run.checkpoint_every": 1}
    assert project(["prepare"], **given) == 0
    way.cut = lambda request: len(downloads(way)) > 6
    capsys.readouterr()
    assert project(["teacher --seed 0"], **given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nfm: ")]
    assert len(lines) == 1
    assert f"stream is {url}, which the store does not give" in lines[0]
    way.cut = lambda request: False
    assert project(["teacher --seed 0"], **given) == 0


def test_without_boto3_a_store_is_one_sentence(monkeypatch):
    for name in ("boto3", "boto3.exceptions", "botocore", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "boto3" else find(name, *rest))
    with pytest.raises(InputError, match="stream is s3://store/x, which needs boto3; install nfm with the extra"):
        Store("s3://store/x").holds({"sha256": "0" * 64, "bytes": 1})


@pytest.mark.parametrize("value", ["http://store/x", "s3://", "s3:///x", "/data", ""])
def test_an_url_of_another_kind_is_refused(value):
    with pytest.raises(
        InputError, match=rf"stream: it is '{value}', expected s3://bucket/prefix, or null for images on"
    ):
        parse_params(with_overrides(read_mapping(ROOT / "params.yaml"), {"stream": value}), "params.yaml")
