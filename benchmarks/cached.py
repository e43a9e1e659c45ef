"""flow-overhead: what the flow costs where every stage is up to date, against `dvc repro` on the same project."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.peers import Peers
from benchmarks.table import Row
from benchmarks.timing import Ratio
from tests.servers import prefect_server_in

ROOT = Path(__file__).parents[1]
STAGES = 12
FLOW = """
from pathlib import Path
from prefect import flow
from flows.pipeline import run_graph

@flow
def cached():
    return run_graph(Path.cwd())

cached()
"""
EMPTY = """
from prefect import flow

@flow
def empty():
    pass

empty()
"""


def flow_overhead(_: Peers, seconds: float) -> Iterator[Row]:
    """Both commands by turns, whole processes with their children; the Prefect server's own time is not counted."""
    with cached_project(STAGES) as (project, address):
        programs = (["-c", FLOW], ["-c", EMPTY], ["-m", "dvc", "repro"])
        turns = [[spent(project, program, address) for program in programs] for _ in range(5)]
    ours, empty, dvc = zip(*turns, strict=True)
    what, note = f"{STAGES} cached stages, a running server", "goal: the flow takes at most 1.5 times as long"
    yield Row("flow-overhead", what, "dvc repro", _ratio(ours, dvc), 1 / 1.5, note=note)
    note = "what Prefect itself takes"
    yield Row("flow-overhead", "a flow without tasks", "dvc repro", _ratio(empty, dvc), note=note)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    middle, other = statistics.median(ours), statistics.median(theirs)
    return Ratio(other / middle, min(theirs) / min(ours), middle, other, len(ours))


@contextmanager
def cached_project(stages: int) -> Iterator[tuple[Path, str]]:
    """Makes a DVC project all of whose stages are up to date, a matrix behind one stage, and a Prefect server."""
    with tempfile.TemporaryDirectory() as base:
        project, home = Path(base) / "project", Path(base) / "home"
        project.mkdir()
        home.mkdir()
        graph = {
            "first": {"cmd": "echo first > first", "outs": ["first"]},
            "rest": {
                "matrix": {"number": list(range(stages - 1))},
                "cmd": "echo ${item.number} > rest-${item.number}",
                "deps": ["first"],
                "outs": ["rest-${item.number}"],
            },
        }
        (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": graph}))
        for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"], ["dvc", "repro", "--quiet"]):
            program = command if command[0] == "git" else [sys.executable, "-m", *command]
            subprocess.run(program, cwd=project, env=environment(""), capture_output=True, check=True)
        with prefect_server_in(home) as address:
            flow_seconds(project, address)
            repro_seconds(project, address)
            yield project, address


def flow_seconds(project: Path, address: str) -> float:
    return spent(project, ["-c", FLOW], address)


def repro_seconds(project: Path, address: str) -> float:
    return spent(project, ["-m", "dvc", "repro"], address)


def spent(project: Path, arguments: list[str], address: str) -> float:
    """Returns the processor's seconds of a Python process and those that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=project, env=environment(address), capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment(address: str) -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT), "NFM_TRACKER": "none", "PREFECT_API_URL": address}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found
