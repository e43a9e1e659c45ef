"""The simulation against a training that really runs: two processes by gloo on this machine's CPU, a thread each.

`torchrun` starts this file twice. By turns it times an update of one process alone, of both without averaging, the
averaging of a bucket and of a few bytes, and an update of both by torch's DistributedDataParallel; what the simulation
makes of all but the last is then held against that. A time is the median of all rounds, and there are several launches.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.__main__ import processor
from benchmarks.cluster import TRAFFIC, Cluster, Job, Pass
from benchmarks.events import update_seconds
from benchmarks.workload import timeline
from nfm.artifacts import write_json
from nfm.plan.count import on_meta
from nfm.random import generator_for
from nfm.student.velocity import SiT

ROOT = Path(__file__).parents[1]
SHAPE, PATCH = (3, 16, 16), (4, 4)  # 16 tokens
SMALL = 1024  # bytes whose averaging is all latency
BATCHES = (4, 16)  # images a process: more to average beside an image, and less
LAUNCHES, ROUNDS = 3, 6  # the first round is not counted
UPDATES = 3  # of each kind in a round, after one that is not counted
SIMULATED = 200
QUARTILES = 1.349  # between those of a normal distribution, in standard deviations


def make() -> SiT:
    """Makes a network of 29 million weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SiT(SHAPE, PATCH, depth=6, width=512, head_size=64, classes=10)


@dataclass
class Times:
    """Seconds by kind of work: passes forward and backward, updates of the weights, and averaging."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_processes", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="file for the seconds of the first process")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {str(batch): times(batch, given.rounds) for batch in BATCHES}
    if distributed.get_rank() == 0:
        write_json(given.to, found)
    distributed.destroy_process_group()


def times(batch: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each kind of work at some images a process."""
    model = make()
    both = DistributedDataParallel(make())
    works: dict[str, Callable[[Times], None]] = {
        "alone": updating(model, batch, "alone") if distributed.get_rank() == 0 else lambda _: None,
        "beside": updating(model, batch, "beside"),
        "averaging": averaging,
        "both": updating(both, batch, "both"),
    }
    found = Times()
    for number in range(rounds):
        for work in works.values():
            work(Times())  # not counted
            for _ in range(UPDATES):
                distributed.barrier()
                work(found if number else Times())
    return found.seconds


def updating(model: torch.nn.Module, batch: int, kind: str) -> Callable[[Times], None]:
    """Returns an update on fixed images: a pass, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
    x = torch.randn(batch, *SHAPE, generator=generator_for(distributed.get_rank()))
    t, label = torch.linspace(0, 1, batch), torch.arange(batch) % 10

    def work(found: Times) -> None:
        optimizer.zero_grad(set_to_none=True)
        with found.of(kind):
            with found.of(f"{kind}, pass"):
                (model(x, t, label) - x).square().mean().backward()
            with found.of(f"{kind}, weights"):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
                optimizer.step()

    return work


def averaging(found: Times) -> None:
    for size in (SMALL, Cluster().bucket):
        values = torch.zeros(int(size) // 4)
        distributed.barrier()
        with found.of(f"averaging {int(size)}"):
            distributed.all_reduce(values)


def measured(rounds: int = ROUNDS) -> dict[str, dict[str, list[float]]]:
    """Runs both processes and returns by images a process the seconds of each kind of work."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "seconds.json"
        module = ["-m", "benchmarks.two_processes", "--to", str(to), "--rounds", str(rounds)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *module]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        return json.loads(to.read_text())


def check(launches: int = LAUNCHES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Returns what was measured, what the simulation predicts from it, and the ratio of both."""
    load = round(os.getloadavg()[0], 1)
    found = [measured(rounds) for _ in range(launches)]
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "load_before": load,
        "rounds": rounds,
        "weights": sum(weight.numel() for weight in on_meta(make).parameters()),
        "rows": [summed_up(batch, [compared(batch, launch[str(batch)]) for launch in found]) for batch in BATCHES],
    }


def summed_up(batch: int, launches: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the ratios of several launches: their median, the least and the most."""
    kinds = launches[0]["predicted_over_measured"]
    ratios = {kind: sorted(launch["predicted_over_measured"][kind] for launch in launches) for kind in kinds}
    return {
        "images_a_process": batch,
        "predicted_over_measured": {
            kind: {"median": statistics.median(values), "least": values[0], "most": values[-1]}
            for kind, values in ratios.items()
        },
        "launches": launches,
    }


def compared(batch: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Compares the images a second of both processes with those predicted.

    Arguments:
        batch: Images a process.
        seconds: By kind of work, from `times`.
    """
    found = statistics.median(seconds["both"])
    predicted = {
        "alone": predict(batch, seconds, "alone"),
        "beside": predict(batch, seconds, "beside"),
        "beside, nothing overlapped": predict(batch, seconds, "beside", overlaps=False),
    }
    return {
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "update_seconds": found,
        "predicted_seconds": predicted,
        "images_per_second": 2 * batch / found,
        "predicted_over_measured": {kind: found / value for kind, value in predicted.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Returns the quartiles of some seconds."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def predict(batch: int, seconds: dict[str, list[float]], kind: str, *, overlaps: bool = True) -> float:
    """Returns the seconds that the simulation gives an update of two processes.

    Arguments:
        batch: Images a process.
        seconds: By kind of work.
        kind: "alone" or "beside": whose passes the simulated processes make.
        overlaps: Whether gradients are averaged beside the backward pass, or behind it.
    """
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    low, _, high = statistics.quantiles((math.log(value) for value in seconds[f"{kind}, pass"]), n=4)
    forward, gradients = timeline(on_meta(make))
    seconds_an_image = middle[f"{kind}, pass"] / batch
    job = Job(2 * batch, batch, Pass(seconds_an_image), forward if overlaps else 1.0, gradients, math.prod(SHAPE))
    few, many = middle[f"averaging {SMALL}"], middle[f"averaging {int(Cluster().bucket)}"]
    cluster = replace(
        Cluster(),
        nvlink=(Cluster().bucket - SMALL) / (many - few),
        nvlink_latency=few / 2,
        memory=TRAFFIC * job.weight_bytes / middle[f"{kind}, weights"],
        jitter=(high - low) / QUARTILES,  # by quartiles, as other programs disturb some updates much
        s3=1e15,
    )
    return update_seconds(job, 2, cluster, updates=SIMULATED)


if __name__ == "__main__":
    main()
