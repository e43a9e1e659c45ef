"""data, stage-overhead, flow-overhead: what is not arithmetic."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import torch
import yaml

from benchmarks.networks import student_update
from benchmarks.peers import Peers
from benchmarks.sizes import SIZES
from benchmarks.table import Row
from benchmarks.timing import Ratio, Work, clocked, compare
from nfm.config import read_mapping, with_overrides
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.writing import write_splits
from nfm.random import generator_for
from nfm.stages.fit import read_batch
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
IMAGES = 60_000
STAGES = (
    ("prepare",),
    ("features",),
    ("reference",),
    ("teacher",),
    ("couple", "--coupling", "semidiscrete-ot"),
    ("couple", "--coupling", "teacher"),
    ("student", "--coupling", "semidiscrete-ot"),
    ("student", "--coupling", "teacher"),
    ("evaluate", "--coupling", "semidiscrete-ot"),
    ("evaluate", "--coupling", "teacher"),
    ("evaluate", "--teacher"),
    ("report",),
)


def data(_: Peers, seconds: float) -> Iterator[Row]:
    """A batch read, against an update of a student of size a; a share below 1 % is a ratio above 100."""
    size = SIZES[0]
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder))
        update = student_update(size)
        # First, since the kernel keeps the pages of a file that is mapped.
        ratios = {"cold": cold(Path(folder) / "train", update)}
        split = Split.open(Path(folder) / "train")
        order = torch.randperm(len(split), generator=generator_for(0)).split(size.batch)[:-1]
        turn = cycle(order)

        def read() -> None:
            rows = next(turn)
            split.expect(rows)
            read_batch(split, rows, torch.device("cpu"))

        ratios["warm"] = compare(read, update, seconds)
        for cache, ratio in ratios.items():
            what = f"batch {size.batch}, {cache} page cache"
            yield Row("data", what, "update of size a", ratio, 100, note="update / read")


def cold(folder: Path, update: Work) -> Ratio:
    """Times reads whose pages the kernel was asked to drop, by the wall clock: the processor waits for the disk.

    They are expected an update before, as in a training; that is counted too.
    """
    times, updates = [], []
    update()
    for number in range(5):
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        split = Split.open(folder)
        rows = torch.randint(len(split), (SIZES[0].batch,), generator=generator_for(number))
        start = time.perf_counter()
        split.expect(rows)
        expected = time.perf_counter() - start
        updates.append(clocked(update, 1))
        start = time.perf_counter()
        read_batch(split, rows, torch.device("cpu"))
        times.append(expected + time.perf_counter() - start)
        del split
    read, updated = statistics.median(times), statistics.median(updates)
    return Ratio(updated / read, min(updates) / min(times), read, updated, len(times))


def write_noise(folder: Path) -> None:
    """Writes images of size a."""
    pixels = torch.randint(256, (IMAGES, *SIZES[0].shape), generator=generator_for(0)).to(torch.uint8)
    labels = torch.arange(IMAGES) % 10
    examples = Examples.of(pixels, labels)
    few = examples.subset(torch.arange(100))
    write_splits(folder, Source("noise", SIZES[0].shape, tuple("0123456789"), examples, few, "noise"), seed=0)


def stage_overhead(_: Peers, seconds: float) -> Iterator[Row]:
    """Each stage on settings that leave it next to nothing to do, against the import of torch alone."""
    with tempfile.TemporaryDirectory() as folder:
        params = with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, "seeds": [0], "one_step": []})
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        for stage in STAGES:
            program = ["-m", "nfm", *stage]
            spent(folder, program)  # writes bytecode, and the outputs that later stages read
            turns = [(spent(folder, program), spent(folder, ["-c", "import torch"])) for _ in range(3)]
            ours, bare = (sorted(times) for times in zip(*turns, strict=True))
            ratio = Ratio(bare[1] / ours[1], bare[0] / ours[0], ours[1], bare[1], 3)
            yield Row("stage-overhead", " ".join(stage), "import torch", ratio, note="goal: ours <= 1.5 s")


def spent(folder: str, arguments: list[str]) -> float:
    """Returns the processor's seconds of a Python process in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NFM_TRACKER": "none", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
