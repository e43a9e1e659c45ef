"""What sharing out a teacher's coupling gives and costs: writes results/fan_out.json, in some ten minutes of two cores.

Scaling: 16 draws of each of 1437 digits are encoded by the flow's tasks, one and two at once, in turns; each run starts
from nothing, includes the starts of its processes, and ends with the bytes that one process writes. The teacher is wide
enough for arithmetic to dominate, and untrained: what it encodes to does not matter to the time.
Overhead: a thousand shares that do nothing, on a Prefect server of their own; requests are counted where they are sent.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings

from flows.fan_out import FanOut, run_shares
from flows.process import Processes
from nfm.artifacts import write_json
from nfm.build.teacher import make_teacher, save_teacher, teacher_arguments
from nfm.config import Params, parse_params, with_overrides
from nfm.recipes import recipe_text
from nfm.stages.couple import couple
from nfm.stages.prepare import prepare
from tests.servers import prefect_server_in

RESULT = Path(__file__).parents[1] / "results" / "fan_out.json"
PARAMS = {
    "seeds": [0],
    "teacher.width": 128,
    "teacher.layers": 2,
    "coupling.teacher.draws": 16,
    "coupling.teacher.shard_mb": 0.2,  # 15 shards
    "coupling.teacher.gate.allow": True,
}
COMMAND = "python -m nfm couple --coupling teacher --seed 0"  # as in dvc.yaml
SHARES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shares", type=int, default=SHARES)
    given = parser.parse_args()
    os.environ |= {"NFM_TRACKER": "none", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with prefect_server_in(base) as address, temporary_settings({PREFECT_API_URL: address}):
            result = {
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 2),
                "torch": torch.__version__,
                "scaling": scaling(base / "project", given.rounds),
                "overhead": overhead(base, given.shares),
            }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def scaling(root: Path, rounds: int) -> dict[str, Any]:
    """Times the shares with one and with two tasks at once, in turns."""
    params = make_project(root)
    couple(root, params, "teacher", 0)
    alone = digest(root / "artifacts" / "coupling" / "teacher-0")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for at_once, taken in seconds.items():
            shutil.rmtree(root / ".checkpoints", ignore_errors=True)
            start = time.perf_counter()
            state = run_shares("couple-teacher@0", COMMAND, root, FanOut(2, "threads", None), at_once, Processes())
            taken.append(time.perf_counter() - start)
            assert state.is_completed(), state.message
            couple(root, params, "teacher", 0)
            assert digest(root / "artifacts" / "coupling" / "teacher-0") == alone
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {
        "images": 1437,
        "draws": 16,
        "shares": 2,
        "seconds": {str(count): [round(value, 2) for value in taken] for count, taken in seconds.items()},
        "ratio": {"median": round(statistics.median(ratios), 2), "lowest": round(min(ratios), 2)},
        "same_bytes": True,  # asserted in every round
    }


def overhead(folder: Path, shares: int) -> dict[str, Any]:
    """Times shares that do nothing, and counts what they ask of the server."""
    here = os.times()
    with counted() as requests, temporary_settings({PREFECT_LOGGING_LEVEL: "WARNING"}):
        start = time.perf_counter()
        state = run_shares("nothing", "true", folder, FanOut(shares, "threads", None), os.cpu_count() or 1, Processes())
        seconds = time.perf_counter() - start
    assert state.is_completed(), state.message
    cpu = os.times().user + os.times().system - here.user - here.system
    return {
        "shares": shares,
        "seconds": round(seconds, 1),
        "milliseconds_a_share": round(1000 * seconds / shares, 1),
        "cpu_milliseconds_a_share": round(1000 * cpu / shares, 1),
        "requests": dict(sorted(requests.items())),
        "requests_a_share": round(sum(requests.values()) / shares, 3),
    }


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts requests by method while the block runs, of clients of both kinds; events have a socket of their own."""
    requests: dict[str, int] = {}
    sync, asynchronous = httpx.Client.send, httpx.AsyncClient.send

    def send(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        requests[request.method] = requests.get(request.method, 0) + 1
        return sync(self, request, **options)

    async def send_async(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        requests[request.method] = requests.get(request.method, 0) + 1
        return await asynchronous(self, request, **options)

    httpx.Client.send, httpx.AsyncClient.send = send, send_async  # pyright: ignore
    try:
        yield requests
    finally:
        httpx.Client.send, httpx.AsyncClient.send = sync, asynchronous


def make_project(root: Path) -> Params:
    """Prepares the digits and an untrained teacher in a folder."""
    mapping = with_overrides(yaml.safe_load(recipe_text("digits")), PARAMS)
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(mapping, sort_keys=False))
    params = parse_params(mapping, "digits")
    prepare(root, params)
    arguments = teacher_arguments(params.teacher, (1, 8, 8), 10)
    torch.manual_seed(0)
    save_teacher(root / "artifacts" / "teacher" / "0" / "teacher.safetensors", make_teacher(arguments), arguments, 0.2)
    return params


def digest(folder: Path) -> str:
    """Returns a hash of the contents of all files of a folder but the card's picture."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix != ".png"):
        found.update(path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
