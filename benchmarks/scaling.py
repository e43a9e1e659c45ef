"""How time and memory grow: writes results/scaling.json and results/scaling.png.

With images, from 1e3 to 1e6: writing them, reading batches of them, encoding them by a teacher, summing up features.
With stored draws of an image, and with the stages of a cached matrix. Each size runs in a process of its own; noted are
the processor's seconds, and the largest memory less what it was before the work. The exponent of a growth is the slope
of log time over log size, by least squares over the sizes that take a second or more or else the last two; 1 is linear.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cached import cached_project, flow_seconds, repro_seconds
from nfm.artifacts import write_json
from nfm.coupling.teacher import encode_draws
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.writing import write_splits
from nfm.metrics.statistics import Accumulator
from nfm.random import generator_for
from nfm.teacher.tarflow import TarFlow

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "scaling.json"
SHAPE, CLASSES, BATCH = (1, 8, 8), 10, 256
IMAGES = (1_000, 10_000, 100_000, 1_000_000)
DRAWS = (1, 4, 16, 64)
STAGES = (10, 100, 1_000)


def noise_images(count: int) -> Examples:
    """Returns images that are drawn as they are read, so that they take no memory."""

    def read(index: torch.Tensor):
        for rows in index.split(BATCH):
            yield torch.randint(256, (len(rows), *SHAPE), generator=generator_for(int(rows[0]))).to(torch.uint8)

    return Examples(torch.arange(count), torch.arange(count) % CLASSES, read)


def write(count: int, folder: Path) -> None:
    names = tuple(str(c) for c in range(CLASSES))
    write_splits(folder, Source("noise", SHAPE, names, noise_images(count), noise_images(100), "noise"), seed=0)


def read(count: int, folder: Path) -> None:
    """Reads every image once, in a random order."""
    split = Split.open(folder / "train")
    for rows in torch.randperm(count, generator=generator_for(0)).split(BATCH):
        split.images(rows)


def encode(count: int, folder: Path, draws: int = 1) -> None:
    """Encodes images by a small teacher, a batch at a time."""
    teacher = TarFlow(SHAPE, (1, 8), blocks=2, layers=1, width=16, head_size=16, classes=CLASSES).eval()
    for first in range(0, count, BATCH):
        rows = min(BATCH, count - first)
        x, label = torch.zeros(rows, *SHAPE), torch.arange(rows) % CLASSES
        encode_draws(teacher, x, label, noise_std=0.2, draws=draws, seed=0, first=first)


def sum_up(count: int, folder: Path) -> None:
    """Sums up the features of samples, 64 each."""
    accumulator = Accumulator()
    for first in range(0, count, BATCH):
        rows = min(BATCH, count - first)
        accumulator.add(torch.randn(rows, 64, generator=generator_for(first)))
    accumulator.statistics()


WORKS: dict[str, Callable[..., None]] = {"write": write, "read": read, "encode": encode, "statistics": sum_up}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--draws", type=int, nargs="+", default=DRAWS)
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES)
    parser.add_argument("--to", type=Path, default=RESULT)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)  # what a process of its own does: name, size, folder
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.work is not None:
        name, size, folder = given.work
        print(json.dumps(alone(name, int(size), Path(folder))))
        return
    found = {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "images": grown(list(WORKS), given.images),
        "draws": grown(["draws"], given.draws),
        "stages": {"sizes": list(given.stages), "rows": [cached(n) for n in given.stages]},
    }
    write_json(given.to, found)
    plot(found, given.to.with_suffix(".png"))
    print(json.dumps(found, indent=2))


def alone(name: str, size: int, folder: Path) -> dict[str, float]:
    """Does one work and says what it took of the processor, by the clock, and of memory beyond the imports."""
    before = peak()
    start, clock = time.process_time(), time.monotonic()
    with torch.no_grad():
        if name == "draws":
            encode(1_000, folder, size)
        else:
            WORKS[name](size, folder)
    spent = {"seconds": time.process_time() - start, "wall": time.monotonic() - clock}
    return {key: round(value, 3) for key, value in spent.items()} | {"peak_mb": round(peak() - before)}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def grown(names: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Runs works at every size, each in a process of its own; a size's works share a folder."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                command = [sys.executable, "-m", "benchmarks.scaling", "--work", name, str(size), folder]
                answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                rows[name].append(json.loads(answer.stdout))
    works = {name: {"rows": found, "exponent": exponent(sizes, found)} for name, found in rows.items()}
    return {"sizes": list(sizes), "works": works}


def exponent(sizes: Sequence[int], rows: Sequence[dict[str, float]]) -> float | None:
    """Returns the slope of log time over log size, of the sizes that take a second or more; None for fewer than two."""
    long = [(size, row["seconds"]) for size, row in zip(sizes, rows, strict=True) if row["seconds"] >= 1]
    if len(long) < 2:
        long = [(size, row["seconds"]) for size, row in zip(sizes, rows, strict=True)][-2:]
    if len(long) < 2:
        return None
    x, y = np.log([size for size, _ in long]), np.log([max(seconds, 1e-9) for _, seconds in long])
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def cached(stages: int) -> dict[str, float]:
    """Returns the processor's seconds of the flow and of `dvc repro` where all is up to date."""
    with cached_project(stages) as (project, address):
        flow, dvc = flow_seconds(project, address), repro_seconds(project, address)
    return {"flow_seconds": round(flow, 2), "dvc_seconds": round(dvc, 2), "flow_a_stage": round(flow / stages, 4)}


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    sizes = found["images"]["sizes"]
    for name, work in found["images"]["works"].items():
        left.loglog(sizes, [row["seconds"] for row in work["rows"]], "o-", label=f"{name}, exponent {work['exponent']}")
        middle.semilogx(sizes, [row["peak_mb"] for row in work["rows"]], "o-", label=name)
    left.set(xlabel="images", ylabel="seconds of one core")
    middle.set(xlabel="images", ylabel="memory, MB", ylim=(0, None))
    for name in ("flow", "dvc"):
        seconds = [row[f"{name}_seconds"] for row in found["stages"]["rows"]]
        right.loglog(found["stages"]["sizes"], seconds, "o-", label={"flow": "the flow", "dvc": "dvc repro"}[name])
    right.set(xlabel="cached stages", ylabel="seconds of the processor")
    for axes in (left, middle, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
