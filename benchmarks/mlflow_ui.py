"""MLflow's interface with many runs, in a real browser: writes results/mlflow_ui.json, in a minute or two.

Needs Chromium. The runs are copies, with other figures, of what a flow run leaves: an evaluation with its params, tags,
tables of FD by NFE. For each view: seconds from opening its address until it shows what it is for. Screenshots go to a
folder, to be looked at.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from nfm.artifacts import write_json
from tests.browser import Page, chromium_page
from tests.servers import free_port, wait_for_answer

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "mlflow_ui.json"
NFES = (1, 2, 3, 4, 5, 7, 15, 31)
COUPLINGS = ("independent", "minibatch-ot", "semidiscrete-ot", "teacher")


def fill(uri: str, count: int) -> list[str]:
    """Writes evaluations into an MLflow database; returns their ids.

    Arguments:
        uri: The database.
        count: How many.
    """
    client, draw = MlflowClient(uri), np.random.default_rng(0)
    experiment = client.create_experiment("nfm")
    ids = []
    for number in range(count):
        coupling = COUPLINGS[number % len(COUPLINGS)]
        name = f"evaluate@{coupling}-{number // len(COUPLINGS)}"
        run = client.create_run(experiment, run_name=name, tags={"stage": "evaluate", "dvc.stage": name})
        params = {"coupling": coupling, "seed": number // len(COUPLINGS), "draws": "online", "nfe": "1 to 31"}
        params |= {"noise_std": 0.1 if coupling == "teacher" else 0.0}
        params |= {f"student.{key}": value for key, value in (("width", 64), ("depth", 4), ("train.steps", 1800))}
        now, level = int(1000 * time.time()), float(draw.uniform(1, 2))
        figures = [(nfe, level * (1 + 3 / nfe)) for nfe in NFES]
        metrics = [
            Metric(key, fd * share, now, nfe) for nfe, fd in figures for key, share in (("fd", 1), ("kid", 0.01))
        ]
        metrics += [Metric(f"at_nfe/fd_{nfe:02}", fd, now, 0) for nfe, fd in figures]
        metrics += [Metric("seconds", 12.0, now, 0)]
        tags = [RunTag("git.commit", "0" * 40), RunTag("data", "digits"), RunTag("yardstick", "fd_digits_1k")]
        client.log_batch(run.info.run_id, metrics, [Param(key, str(value)) for key, value in params.items()], tags)
        client.set_terminated(run.info.run_id)
        ids.append(run.info.run_id)
    return ids


def seconds_until(page: Page, address: str, shown: str) -> float:
    """Opens an address; returns how long it takes until an expression is true."""
    page.open("about:blank")
    began = time.monotonic()
    page.open(address)
    page.wait_for(shown)
    return round(time.monotonic() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--screenshots", type=Path, help="folder for what was seen")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        uri, port = f"sqlite:///{home}/mlflow.db", free_port()
        ids = fill(uri, given.runs)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", uri, "--default-artifact-root", f"{home}/artifacts"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (Path(home) / "server.log").open("w") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_answer(f"http://127.0.0.1:{port}/health", server)
            with chromium_page(Path(home)) as page:
                seconds = look(page, f"http://127.0.0.1:{port}", ids, given.screenshots)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    write_json(RESULT, {"runs": given.runs, **machine, "seconds": seconds})
    print(json.dumps(seconds))


def look(page: Page, address: str, ids: list[str], screenshots: Path | None) -> dict[str, float]:
    """Opens each view twice, the first time to fill the browser's cache; returns the seconds of the second."""
    chosen = f"runs={json.dumps(ids)}&experiments=[%221%22]".replace(" ", "").replace('"', "%22")
    curves = "[...document.querySelectorAll('.js-plotly-plot')].reduce((n, p) => n + p.data.length, 0)"
    views = {
        "table of runs": ("/#/experiments/1/runs", "document.body.innerText.includes('evaluate@teacher-')"),
        "chart view": ("/#/experiments/1/runs?compareRunsMode=CHART", f"{curves} >= 4"),
        "compare all": (f"/#/compare-runs?{chosen}", "document.body.innerText.includes('Parallel Coordinates')"),
        "curves of all": (
            f"/#/metric?{chosen}&metric=%22fd%22&plot_metric_keys=[%22fd%22]&x_axis=step",
            f"{curves} >= {len(ids)}",
        ),
    }
    seconds = {}
    for name, (path, shown) in views.items():
        seconds_until(page, address + path, shown)
        seconds[name] = seconds_until(page, address + path, shown)
        if screenshots:
            screenshots.mkdir(parents=True, exist_ok=True)
            time.sleep(3)
            page.photograph(screenshots / f"{name.replace(' ', '-')}.png")
    return seconds


if __name__ == "__main__":
    main()
