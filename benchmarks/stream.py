"""What it costs a training that its images stay in S3, 20 ms away: writes results/stream.json.

`python -m benchmarks.stream` trains one small teacher, on one thread, at about the bytes a second that an H200 takes
for a student of ImageNet 64: on images on the disk, streamed, and streamed without bringing anything ahead, by turns.
The store is a server in a process of its own, which holds every answer back; the cache holds a fifth of the images.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import boto3
import torch
from torch import Tensor, nn

from benchmarks.__main__ import machine
from nfm.artifacts import write_json
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.stream import Cache, Store
from nfm.data.writing import write_splits
from nfm.random import generator_for
from nfm.stages.fit import read_batch
from nfm.teacher.loss import teacher_loss
from nfm.teacher.tarflow import TarFlow
from nfm.train.launch import open_accelerator
from nfm.train.order import Windows
from nfm.train.plan import Plan
from nfm.train.update import Piece, Updater
from tests.faulty import way_to

RESULT = Path(__file__).parents[1] / "results" / "stream.json"
SHAPE, BATCH, URL = (3, 64, 64), 64, "s3://store/images"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
WAYS = ("disk", "streamed", "streamed, nothing ahead")


@dataclass(frozen=True)
class Scale:
    """How much is streamed.

    Attributes:
        images: In all.
        shard: Images in a shard.
        window: Shards that are mixed.
        updates: In a turn.
        turns: Of each way.
    """

    images: int = 13_600
    shard: int = 680
    window: int = 2
    updates: int = 85  # four windows
    turns: int = 7


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--small", action="store_true", help="few images, to see whether it runs; writes nothing")
    parser.add_argument("--latency", type=float, default=20.0, metavar="MS", help="added to every answer")
    parser.add_argument(
        "--to", type=Path, help="file for the figures; results/stream.json by default, for --small none"
    )
    given = parser.parse_args()
    if given.latency < 0:
        print(f"benchmarks.stream: --latency is {given.latency:g}, expected milliseconds from 0", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(1)
    scale = Scale(340, 34, 1, 3, 2) if given.small else Scale()
    found = measured(scale, given.latency / 1e3)
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))
    to = given.to or (None if given.small else RESULT)
    if to is not None:
        write_json(to, found)


def measured(scale: Scale, latency: float) -> dict[str, object]:
    """Trains by turns; seconds are those of the wall clock.

    Arguments:
        scale: How much.
        latency: Seconds that the store holds back every answer.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        store(latency) as address,
        patch.dict(os.environ, CREDENTIALS | {"AWS_ENDPOINT_URL_S3": address}),
    ):
        boto3.client("s3").create_bucket(Bucket="store")
        folder, size = Path(name), 3 * 64 * 64
        for place, kept in (("disk", None), ("store", Store(URL))):
            write_splits(folder / place, noise(scale.images), seed=0, shard_bytes=scale.shard * size, store=kept)
        limit = 2 * scale.window * scale.shard * size
        trainings = {
            "disk": Training(Split.open(folder / "disk" / "train"), scale.window, ahead=False),
            **{
                way: Training(streamed(folder, limit, number), scale.window, ahead=number == 0)
                for number, way in enumerate(WAYS[1:])
            },
        }
        turns = by_turns(trainings, scale)
    seconds = {way: statistics.median(each) / scale.updates for way, each in turns.items()}
    rate = BATCH * size / seconds["disk"]
    return {
        "machine": machine() | {"clock": "wall"},
        "latency_ms": 1e3 * latency,
        "bytes": {"images": scale.images * size, "cache": limit, "shard": scale.shard * size, "a_second": rate},
        "updates": scale.updates * scale.turns,
        "seconds_per_update": {way: spread(each, scale.updates) for way, each in turns.items()},
        "waiting": {way: training.waited / sum(turns[way]) for way, training in trainings.items()},
        "slowdown": {way: seconds[way] / seconds["disk"] - 1 for way in WAYS[1:]},
    }


def streamed(folder: Path, limit: int, number: int) -> Split:
    return Split.open(folder / "store" / "train", cache=Cache(folder / f"cache-{number}", limit))


def noise(count: int) -> Source:
    pixels = torch.randint(256, (count, *SHAPE), generator=generator_for(0), dtype=torch.uint8)
    examples = Examples.of(pixels, None)
    return Source("noise", SHAPE, (), examples, examples.subset(torch.arange(1)), "noise")


class Training:
    """A training of a small teacher.

    Arguments:
        split: Its images.
        window: Shards that are mixed at a time.
        ahead: Whether streamed shards come before they are needed.

    Attributes:
        waited: Seconds spent reading images.
    """

    def __init__(self, split: Split, window: int, ahead: bool) -> None:
        self._split, self._windows, self._ahead = split, Windows(split.counts, window), ahead
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = TarFlow(SHAPE, (16, 16), blocks=2, layers=1, width=128, head_size=64, classes=None)
        plan = Plan(10**6, BATCH, 1e-4, (0.9, 0.95), 1e-4, 100, 0.1, 1.0, 0.999, "no", 5)
        optimizer = torch.optim.AdamW(model.parameters(), plan.lr, fused=True)
        accelerator = open_accelerator("no")
        self._update = Updater(accelerator, model, optimizer, self._loss, plan, len(split), 0, self._windows)
        self._step, self.waited = 0, 0.0

    def go_on(self, updates: int) -> None:
        for _ in range(updates):
            self._update(self._step)
            self._step += 1

    def _loss(self, model: nn.Module, piece: Piece, generator: torch.Generator) -> Tensor:
        start = time.perf_counter()
        if self._split.stream is not None:
            needed = self._windows.needed(BATCH, piece.seed, piece.step)
            self._split.stream.expect(needed if self._ahead else needed[: -self._windows.width])
        batch = read_batch(self._split, piece.index, torch.device("cpu"))
        self.waited += time.perf_counter() - start
        return teacher_loss(model, batch.data, None, generator, noise_std=0.1, label_drop=0.0)


def by_turns(trainings: dict[str, Training], scale: Scale) -> dict[str, list[float]]:
    """Returns the seconds of each turn, after a first one that is not counted."""
    for training in trainings.values():
        training.go_on(scale.updates)
        training.waited = 0.0
    turns: dict[str, list[float]] = {way: [] for way in trainings}
    for number in range(scale.turns):
        for way in list(trainings)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            trainings[way].go_on(scale.updates)
            turns[way].append(time.perf_counter() - start)
    return turns


def spread(turns: list[float], updates: int) -> dict[str, float]:
    each = sorted(seconds / updates for seconds in turns)
    return {"median": statistics.median(each), "least": each[0], "most": each[-1]}


@contextmanager
def store(latency: float) -> Iterator[str]:
    """Runs an S3 server, and a way to it that holds answers back, in a process of their own; gives the address."""
    here, there = Pipe()
    process = get_context("spawn").Process(target=_serve, args=(there, latency), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection, latency: float) -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with way_to(f"http://{host}:{port}") as way:
        way.late = latency
        told.send(way.address)
        time.sleep(1e9)


if __name__ == "__main__":
    main()
