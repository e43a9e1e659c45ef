"""Requests and images a second that `mlflow models serve` answers: `benchmarks/serve.py --to results/serve.json`.

The load is made by `wrk` (Debian: `apt-get install wrk`) on the same machine, so both share its cores.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nfm.artifacts import write_json
from nfm.errors import InputError

CLIENTS = (1, 8, 64)
ROWS = (1, 64)  # images in a request
SCRIPT = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{body}]]
"""
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@contextmanager
def served(model: str, workers: int) -> Iterator[str]:
    """Serves a model in this environment; gives the address of its answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}/ping", server)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise InputError("the server has ended; `mlflow models serve` with the same model says why")
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise InputError("the server does not answer after two minutes")


def body_of(rows: int, nfe: int) -> str:
    """Returns a request for so many images, as JSON."""
    row = {"seed": 0, "nfe": nfe, "solver": "euler", "guidance": 1.0}
    return json.dumps({"dataframe_records": [{**row, "seed": seed, "label": seed % 10} for seed in range(rows)]})


def load(address: str, body: str, clients: int, seconds: int) -> dict[str, float]:
    """Sends the same request from so many clients, each as soon as it has its answer; returns what wrk has counted."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(body=body))
        script.flush()
        command = ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{seconds}s"]
        command += ["--timeout", "60s", "--latency", "--script", script.name, address]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return read(said)


def read(said: str) -> dict[str, float]:
    """Returns the figures in what wrk prints.

    Raises:
        InputError: Some requests were refused or not answered.
    """
    if bad := re.search(r"(Non-2xx or 3xx responses|Socket errors): .*", said):
        raise InputError(f"wrk says {bad[0]!r}, expected an answer to every request; look at the server's log")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    spread = {q: re.search(rf"\s{q}%\s+([\d.]+)(us|ms|s|m)\b", said) for q in (50, 99)}
    if rate is None or None in spread.values():
        raise InputError(f"wrk printed {said[:200]!r}, expected requests a second and latencies; is it version 4?")
    if not float(rate[1]):
        raise InputError("wrk has had no answer in the time that it was given; give more with --seconds")
    latencies = {f"p{q}_ms": round(float(found[1]) * MILLISECONDS[found[2]], 1) for q, found in spread.items() if found}
    return {"requests_per_second": float(rate[1]), **latencies}


def measure(model: str, workers: int, nfe: int, seconds: int) -> list[dict[str, Any]]:
    """Returns the figures of each number of rows in a request and of clients."""
    figures = []
    with served(model, workers) as address:
        for rows in ROWS:
            load(address, body_of(rows, nfe), 1, 1)  # warm
            for clients in CLIENTS:
                found = load(address, body_of(rows, nfe), clients, seconds)
                images = round(rows * found["requests_per_second"], 1)
                figures.append({"images_per_request": rows, "clients": clients, **found, "images_per_second": images})
                print(json.dumps(figures[-1]), file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models:/nfm-digits@champion")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--nfe", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=20, help="for each figure")
    parser.add_argument("--to", type=Path, help="file for the figures, such as results/serve.json")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("nfm: wrk is not on the PATH, and it makes the load; `apt-get install wrk`")
    figures = {
        "model": given.model,
        "nfe": given.nfe,
        "workers": given.workers,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),  # of what else ran, before
        "seconds": given.seconds,
        "versions": {"mlflow": version("mlflow"), "torch": version("torch")},
        "figures": measure(given.model, given.workers, given.nfe, given.seconds),
    }
    print(json.dumps(figures, indent=2))
    if given.to:
        write_json(given.to, figures)


if __name__ == "__main__":
    main()
