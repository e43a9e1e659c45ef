"""How time and memory grow: writes results/scaling.json and results/scaling.png.

With images, from 1e3 to 1e6: writing them, reading batches of them, encoding them by a teacher, summing up features.
With stored draws of an image. With the seeds and the couplings of a whole run, which `dvc repro` makes from nothing on
settings that leave a stage about a second of work. With the stages of a cached matrix. What is named is measured, by
default all; the file keeps the figures of the rest.

Each size runs in a process of its own; noted are the processor's seconds, and the largest memory less what it was
before the work, of a whole run that of its largest process. The exponent of a growth is the slope of log time over log
size, by least squares over the sizes that take a second or more or else the last two; 1 is linear. Part of a whole run
is the same for any size: a line through the sizes gives it, and the exponent of the growing part is the slope between
the two largest without it.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.cached import cached_project, flow_seconds, repro_seconds
from nfm.artifacts import read_json, write_json
from nfm.config import read_mapping, with_overrides
from nfm.coupling.teacher import encode_draws
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.writing import write_splits
from nfm.metrics.statistics import Accumulator
from nfm.random import generator_for
from nfm.teacher.tarflow import TarFlow
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "scaling.json"
SHAPE, CLASSES, BATCH = (1, 8, 8), 10, 256
SIZES = {
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "draws": (1, 4, 16, 64),
    "seeds": (1, 2, 4, 8),
    "couplings": (1, 2, 4, 8),
    "stages": (10, 100, 1_000),
}
RUNS = ("seeds", "couplings")  # what a whole run grows with
FILES = ("params.yaml", "dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore")


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
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SIZES)}; all by default")
    for name, sizes in SIZES.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=sizes, metavar="SIZE")
    parser.add_argument("--to", type=Path, default=RESULT)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)  # what a process of its own does: name, size, folder
    given = parser.parse_args()
    for name in given.names:
        if name not in SIZES:
            parser.error(f"NAME is {name!r}, expected one of {', '.join(SIZES)}")
    torch.set_num_threads(1)
    if given.work is not None:
        name, size, folder = given.work
        print(json.dumps(alone(name, int(size), Path(folder))))
        return
    for name in given.names or SIZES:
        before = {"cores": os.cpu_count(), "load": load()}
        found = before | measured(name, getattr(given, name)) | {"load_after": load()}
        print(json.dumps({name: found}, indent=2), flush=True)
        keep(given.to, name, found)


def load() -> float:
    return round(os.getloadavg()[0], 1)


def measured(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    if name == "stages":
        return {"sizes": list(sizes), "rows": [cached(n) for n in sizes]}
    return grown(list(WORKS) if name == "images" else [name], sizes)


def keep(path: Path, name: str, found: dict[str, Any]) -> None:
    """Puts what was measured into the file, beside what it holds of the rest, and draws all of it."""
    content = (read_json(path) if path.exists() else {}) | {name: found}
    write_json(path, content)
    plot(content, path.with_suffix(".png"))


def alone(name: str, size: int, folder: Path) -> dict[str, float]:
    """Does one work and says what it took of the processor, by the clock, and of memory beyond the imports."""
    if name in RUNS:
        return whole_run(name, size, folder)
    before = peak()
    start, clock = time.process_time(), time.monotonic()
    with torch.no_grad():
        if name == "draws":
            encode(1_000, folder, size)
        else:
            WORKS[name](size, folder)
    spent = {"seconds": time.process_time() - start, "wall": time.monotonic() - clock}
    return {key: round(value, 3) for key, value in spent.items()} | {"peak_mb": round(peak() - before)}


def whole_run(name: str, size: int, folder: Path) -> dict[str, float]:
    """Makes all outputs of a project and says what that took, and of how many stages."""
    project = make_project(folder / "project", name, size)
    clock = time.monotonic()
    seconds = repro_seconds(project, "")
    wall = time.monotonic() - clock
    return {
        "seconds": round(seconds, 2),
        "wall": round(wall, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "stages": len(read_mapping(project / "dvc.lock")["stages"]),
    }


def make_project(folder: Path, name: str, size: int) -> Path:
    """Makes a project without outputs: many seeds of the couplings independent and teacher, or many couplings."""
    shutil.copytree(ROOT / "nfm", folder / "nfm")  # with bytecode, which every size would write anew
    for file in FILES:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / file, folder / file)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    mapping = with_overrides(read_mapping(folder / "params.yaml"), TINY)
    if name == "seeds":
        seeds, couplings = list(range(size)), ["independent", "teacher"]
    else:
        seeds, couplings = [0], [f"independent-{number}" for number in range(size)]
        mapping["coupling"] |= {coupling: {"kind": "independent"} for coupling in couplings}
    mapping = with_overrides(mapping, {"seeds": seeds, "couplings": couplings})
    (folder / "params.yaml").write_text(yaml.safe_dump(mapping, sort_keys=False))
    return folder


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def grown(names: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Runs works at every size, each in a process of its own; a size's works share a folder."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                command = [sys.executable, "-m", "benchmarks.scaling", "--work", name, str(size), folder]
                answer = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                rows[name].append(json.loads(answer.stdout))
    works: dict[str, dict[str, Any]] = {}
    for name, found in rows.items():
        works[name] = {"rows": found, "exponent": exponent(sizes, found)}
        if name in RUNS:
            works[name] |= growing(sizes, found)
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


def growing(sizes: Sequence[int], rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Fits a line: seconds of any size, of one more, and the exponent without the former; {} below three sizes."""
    if len(sizes) < 3:
        return {}
    seconds = [row["seconds"] for row in rows]
    each, fixed = np.polyfit(sizes, seconds, 1)
    slope = np.log((seconds[-1] - fixed) / (seconds[-2] - fixed)) / np.log(sizes[-1] / sizes[-2])
    return {"fixed_seconds": round(fixed, 2), "seconds_each": round(each, 2), "growing_exponent": round(slope, 2)}


def cached(stages: int) -> dict[str, float]:
    """Returns the processor's seconds of the flow and of `dvc repro` where all is up to date."""
    with cached_project(stages) as (project, address):
        flow, dvc = flow_seconds(project, address), repro_seconds(project, address)
    return {"flow_seconds": round(flow, 2), "dvc_seconds": round(dvc, 2), "flow_a_stage": round(flow / stages, 4)}


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws what was measured; a part that was not leaves its axes empty."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, ((seconds, memory), (runs, stages)) = pyplot.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
    images = found.get("images", {"sizes": [], "works": {}})
    for name, work in images["works"].items():
        label = f"{name}, exponent {work['exponent']}"
        seconds.loglog(images["sizes"], [row["seconds"] for row in work["rows"]], "o-", label=label)
        memory.semilogx(images["sizes"], [row["peak_mb"] for row in work["rows"]], "o-", label=name)
    seconds.set(xlabel="images", ylabel="seconds of one core")
    memory.set(xlabel="images", ylabel="memory, MB", ylim=(0, None))
    for name in RUNS:
        if name in found:
            work = found[name]["works"][name]
            label = f"{name}, exponent of what grows {work.get('growing_exponent')}"
            runs.plot(found[name]["sizes"], [row["seconds"] for row in work["rows"]], "o-", label=label)
    runs.set(
        xlabel="seeds or couplings", ylabel="seconds of the processor, a whole run", xlim=(0, None), ylim=(0, None)
    )
    for name, label in {"flow": "the flow", "dvc": "dvc repro"}.items():
        if "stages" in found:
            rows = found["stages"]["rows"]
            stages.loglog(found["stages"]["sizes"], [row[f"{name}_seconds"] for row in rows], "o-", label=label)
    stages.set(xlabel="cached stages", ylabel="seconds of the processor")
    for axes in figure.axes:
        if axes.lines:
            axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
