"""What breaks around a flow run: an S3 store that is away, refuses, or lacks or spoils an object."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

import flows.pipeline
from flows.pipeline import run_graph
from flows.stage import DELAYS, RETRIES, run_stage
from flows.words import failure, unreachable
from tests.conftest import Tiny
from tests.faulty import Way, way_to

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow(name="faults", task_runner=ThreadPoolTaskRunner(max_workers=8))
def run(root: Path, stages: list[str], push: bool = False):
    return run_graph(root, stages, push=push)


def ended(root: Path, stages: list[str], push: bool = False) -> Any:
    return run(root, stages, push, return_state=True)


@pytest.fixture
def way(tiny: Tiny, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    """The way to the store that is the tiny project's remote; tries follow each other fast."""
    for key, value in {**bucket, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(key, value)
    fast = run_stage.with_options(retry_delay_seconds=[1])
    monkeypatch.setattr(flows.pipeline, "run_stage", fast)
    with way_to(bucket["ADDRESS"]) as way:
        (tiny.root / ".dvc" / "config").write_text(
            "[core]\n    remote = store\n['remote \"store\"']\n"
            f"    url = s3://store/{tiny.root.parent.name}\n    endpointurl = {way.address}\n"
        )
        tiny.git("commit", "--quiet", "--all", "--message", "remote")
        yield way


class Store:
    """The objects of a project's remote."""

    def __init__(self, tiny: Tiny, way: Way) -> None:
        self._client = boto3.client("s3", endpoint_url=way.address)
        self._prefix = f"{tiny.root.parent.name}/files/md5/"

    def all(self) -> list[str]:
        found = self._client.list_objects_v2(Bucket="store", Prefix=self._prefix)
        return [each["Key"] for each in found.get("Contents", [])]

    def key_of(self, content: bytes) -> str:
        (key,) = [key for key in self.all() if self.get(key) == content]
        return key

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket="store", Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="store", Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket="store", Key=key)


def cold_clone(tiny: Tiny) -> Tiny:
    """Pushes everything; returns a clone with nothing in its cache."""
    tiny.dvc("push", "--quiet", "--run-cache")
    clone = Tiny(tiny.root.parent / "clone", tiny.runs)
    tiny.git("clone", "--quiet", str(tiny.root), str(clone.root))
    return clone


def spoil(tiny: Tiny, content: bytes) -> None:
    """Damages the cache's copy of a file in place, and removes the file."""
    for path in (tiny.root / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file() and path.read_bytes() == content:
            path.chmod(0o644)
            path.write_bytes(content[:-1] + b"?")
            path.chmod(0o444)  # DVC takes a write-protected file for good


def test_a_damaged_cache_file_is_fetched_again_and_not_remade(tiny: Tiny, way: Way, caplog: pytest.LogCaptureFixture):
    tiny.dvc("push", "--quiet", "--run-cache")
    content = (tiny.root / "work" / "left" / "file").read_bytes()
    spoil(tiny, content)
    (tiny.root / "work" / "left" / "file").unlink()
    state = ended(tiny.root, ["work@left"])
    assert state.is_completed(), state.message
    assert "work@left: work/left/file was damaged here or in DVC's cache; removed" in caplog.text
    assert (tiny.root / "work" / "left" / "file").read_bytes() == content
    assert tiny.executed == []


def test_an_object_damaged_in_the_remote_is_named_remade_and_replaced(
    tiny: Tiny, way: Way, caplog: pytest.LogCaptureFixture
):
    clone, store = cold_clone(tiny), Store(tiny, way)
    content = (tiny.root / "work" / "left" / "file").read_bytes()
    key = store.key_of(content)
    store.put(key, content[:-1] + b"?")
    state = ended(clone.root, ["work@left"], push=True)
    assert state.is_completed(), state.message
    assert "work@left: work/left/file was damaged in the DVC remote too; removed there" in caplog.text
    assert tiny.executed == ["work@left"]
    assert (clone.root / "work" / "left" / "file").read_bytes() == content
    assert store.get(key) == content


@pytest.mark.parametrize(("what", "lock"), [("file", True), ("list of files", False)])
def test_an_object_that_the_remote_lacks_is_named_and_remade(
    tiny: Tiny, way: Way, caplog: pytest.LogCaptureFixture, what: str, lock: bool
):
    clone, store = cold_clone(tiny), Store(tiny, way)
    content = (tiny.root / "work" / "left" / "file").read_bytes()
    key = store.key_of(content)
    if what == "list of files":
        md5 = "".join(key.split("/")[-2:]).encode()
        (key,) = [each for each in store.all() if each.endswith(".dir") and md5 in store.get(each)]
    store.delete(key)
    if not lock:
        (clone.root / "dvc.lock").unlink()
    state = ended(clone.root, ["work@left"], push=True)
    assert state.is_completed(), state.message
    (named,) = re.findall("work@left: neither the cache here nor the DVC remote has (.*); made anew\n", caplog.text)
    assert named in ("work/left", "work/left/file", f"the file with the MD5 {''.join(key.split('/')[-2:])}")
    assert tiny.executed == ["work@left"]
    assert (clone.root / "work" / "left" / "file").read_bytes() == content
    assert store.get(key)


def test_a_store_that_is_away_for_a_while_is_waited_for_on_the_way_out_and_in(tiny: Tiny, way: Way):
    way.close()
    timer = threading.Timer(5, way.open)
    timer.start()
    state = ended(tiny.root, ["data"], push=True)
    assert state.is_completed(), state.message
    timer.join()
    clone = cold_clone(tiny)
    way.close()
    timer = threading.Timer(5, way.open)
    timer.start()
    state = ended(clone.root, ["work@left"])
    assert state.is_completed(), state.message
    timer.join()
    assert tiny.executed == []


def test_a_store_that_goes_away_between_two_objects_leads_to_no_stage_being_run(tiny: Tiny, way: Way):
    clone = cold_clone(tiny)
    (clone.root / "dvc.lock").unlink()  # then DVC takes an object that does not come for one that is not there
    cut: list[str] = []

    def objects(request: str) -> bool:
        wanted = request.startswith("GET ") and "/files/md5/" in request and "?" not in request and len(cut) < 8
        return bool(wanted and not cut.append(request))

    way.cut = objects
    state = ended(clone.root, ["work@left"])
    assert state.is_completed(), state.message
    assert cut
    assert tiny.executed == []


def test_a_store_that_stays_away_fails_the_run_with_what_is_not_pushed_and_a_later_run_pushes_it(
    tiny: Tiny, way: Way, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(RETRIES, "Unreachable", 1)
    (tiny.root / "params.yaml").write_text("scale: 2\n")

    def close(request: str) -> bool:
        return request.startswith("PUT ") and not way.close()

    way.cut = close
    state = ended(tiny.root, ["work@left"], push=True)
    assert state.is_failed()
    assert "data: the outputs are here and not in the DVC remote: " in state.message
    assert "Traceback" not in state.message
    way.cut = lambda request: False
    way.open()
    assert ended(tiny.root, ["work@left"], push=True).is_completed()
    assert Store(tiny, way).key_of((tiny.root / "work" / "left" / "file").read_bytes())


def test_the_tries_cover_a_store_that_is_away_for_a_minute():
    assert sum(DELAYS[: RETRIES["Unreachable"]]) >= 60  # and what an answer takes comes on top
    assert run_stage.retries >= RETRIES["Unreachable"]
    assert run_stage.retry_delay_seconds == DELAYS


@pytest.mark.parametrize(
    "words",
    [
        'Could not connect to the endpoint URL: "http://127.0.0.1:1/store"',
        "[Errno 16] Service Unavailable: An error occurred (503) when calling the HeadObject operation",
        "[Errno 5] An error occurred (502) when calling the HeadObject operation: Bad Gateway",
        "[Errno 121] Internal Server Error: An error occurred (500) when calling the GetObject operation",
        "Connection was closed before we received a valid response from endpoint URL",
        "Response payload is not completed",
    ],
)
def test_what_a_store_that_is_away_answers_is_tried_again(words: str):
    assert failure("data", 255, [f"ERROR: unexpected error - {words}"]).name == "Unreachable"


def test_what_a_store_refuses_is_not_tried_again():
    assert unreachable(["ERROR: unexpected error - Forbidden: An error occurred (403) when calling HeadObject"]) is None


@pytest.mark.parametrize(("off", "words"), [(3600, "60 minutes ahead of"), (-7200, "120 minutes behind")])
def test_a_wrong_clock_is_named(tiny: Tiny, way: Way, off: float, words: str):
    way.off = off
    state = ended(tiny.root, ["data"], push=True)
    assert state.is_failed()
    assert f"data: the outputs are here and not in the DVC remote: this machine's clock is {words}" in state.message
    assert "set the clock by NTP" in state.message
    (tiny.root / "data.txt").unlink()
    for path in (tiny.root / ".dvc" / "cache").glob("files/md5/*/*"):
        path.unlink()
    start = time.monotonic()
    state = ended(tiny.root, ["data"])
    assert f"data: this machine's clock is {words} that of the S3 store at {way.address}, which" in state.message
    assert time.monotonic() - start < 30
    assert tiny.executed == []
