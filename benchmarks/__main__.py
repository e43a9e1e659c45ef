"""How fast this is beside a plain baseline and beside peers: `python -m benchmarks [NAME ...]`.

Prints a table and writes results/benchmarks.json; a row that another run has measured stays there until it is measured
again. A ratio says how many times as fast ours is, the lower of that of the medians and that of the best times; both
variants ran by turns in one process. On CPU times are the processor's, so that other programs disturb less.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import cached, measures, networks, peers, stages
from benchmarks.peers import Peers
from benchmarks.sizes import SIZES, Size, device
from benchmarks.table import Row, text
from nfm.artifacts import read_json, write_json
from nfm.errors import InputError

Benchmark = Callable[[Peers, float], Iterator[Row]]
RESULT = Path(__file__).parents[1] / "results" / "benchmarks.json"


def sized(
    benchmark: Callable[[Size, Peers, float], Iterator[Row]], sizes: Sequence[Size], given: Peers, seconds: float
) -> Iterator[Row]:
    """Gives the rows of a benchmark at each size."""
    for size in sizes:
        yield from benchmark(size, given, seconds)


BENCHMARKS: dict[str, Benchmark] = {
    "teacher-train": partial(sized, networks.teacher_train, SIZES),
    "encode": partial(sized, networks.encode, SIZES),
    "decode": partial(sized, networks.decode, SIZES),
    "student-train": partial(sized, networks.student_train, SIZES),
    "sample": partial(sized, networks.sampling, SIZES),
    "ot": measures.assignment,
    "semidiscrete": measures.semidiscrete,
    "fidelity": measures.fidelity,
    "data": stages.data,
    "stage-overhead": stages.stage_overhead,
    "flow-overhead": cached.flow_overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="a checkout to measure beside")
    parser.add_argument("--seconds", type=float, default=10.0, help="that each variant of a row is to take")
    parser.add_argument("--to", type=Path, default=RESULT, help="file for the figures")
    given = parser.parse_args()
    try:
        found = peers.load(given.peer)
        unknown = [name for name in given.names if name not in BENCHMARKS]
        if unknown:
            raise InputError(f"NAME is {unknown[0]!r}, expected one of {', '.join(BENCHMARKS)}")
    except InputError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in given.names or BENCHMARKS:
        rows = list(BENCHMARKS[name](found, given.seconds))
        print(text(rows), flush=True)
        keep(given.to, name, rows)


def keep(path: Path, name: str, rows: list[Row]) -> None:
    """Puts a benchmark's rows into the file, with the machine that they were measured on."""
    content: dict[str, Any] = read_json(path) if path.exists() else {}
    content["sizes"] = {size.name: str(size) for size in SIZES}
    measured = content.setdefault("benchmarks", {})
    measured[name] = {"machine": machine(), "rows": [row.as_json() for row in rows]}
    content["benchmarks"] = {known: measured[known] for known in BENCHMARKS if known in measured}
    write_json(path, content)


def machine() -> dict[str, Any]:
    """Describes where and with what the figures were measured."""
    cuda = device().type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "clock": "CUDA events" if cuda else "process CPU time",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
    }


def processor() -> str:
    """Returns the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
