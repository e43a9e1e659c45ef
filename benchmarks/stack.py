"""How long a team waits: writes results/stack.json, in some twelve minutes of two cores.

Four times, on clones of this commit: from nothing to a finished pipeline of params.yaml, by the commands of
docs/operations.md; the same deployment again where all is up to date, the worker killed before, so that its start
counts; and clones with empty caches that restore everything from the S3 store: by DVC alone one that has the run's
dvc.lock committed, and by the flow one that has that of this commit, made by an earlier run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from infra.credentials import new_secrets
from infra.settings import load_settings
from infra.stack import Stack
from nfm.artifacts import write_json
from tests.test_stack import ports

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "stack.json"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
AUTHOR = ("-c", "user.name=nfm", "-c", "user.email=nfm@localhost")
REMOTE = [["add", "--local", "--default", "stack", "s3://nfm/dvc"], ["modify", "--local", "stack", "endpointurl"]]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Not below a folder of root's alone: PostgreSQL runs as a user of its own there.
    base = Path(tempfile.mkdtemp(prefix="nfm-"))
    base.chmod(0o755)
    project = base / "project"
    try:
        run(base, "git", "clone", "--quiet", str(ROOT), str(project))
        result = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), **measure(project)}
    finally:
        run(project, sys.executable, "-m", "infra.stack", "down")
        shutil.rmtree(base, ignore_errors=True)
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def measure(project: Path) -> dict[str, Any]:
    """Returns seconds and what was done, for each of the four."""
    base, start = project.parent, time.monotonic()
    text = "".join(f"{name}={value}\n" for name, value in {**new_secrets(), **ports()}.items())
    (project / ".env").write_text(text)
    (project / ".env").chmod(0o600)
    run(project, sys.executable, "-m", "infra.stack", "up")
    ready = time.monotonic() - start
    programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, **load_settings(project).client_environment(), "PATH": programs}
    deploy = ["prefect", "--no-prompt", "deploy", "--name", "pipeline"]
    run(project, sys.executable, "-m", *deploy, environment=environment)
    cold = {"ready_seconds": round(ready, 1), **deployed(project, environment, start)}

    stack = Stack(project)
    worker = stack.supervisor.conditions()["worker"].pid
    start = time.monotonic()
    os.kill(worker, 9)
    again = deployed(project, environment, start)
    assert stack.supervisor.conditions()["worker"].pid != worker

    run(project, sys.executable, "-m", "dvc", "push", "--run-cache", "--quiet", environment=environment)
    by_flow = restored(ROOT, base / "by-flow", environment, "flows.pipeline")
    run(project, "git", *AUTHOR, "commit", "--quiet", "--message", "run", "dvc.lock", "results")
    by_dvc = restored(project, base / "by-dvc", environment, "dvc", "repro", "--pull")
    return {"cold_start": cold, "cached_run": again, "cold_clone": by_dvc, "cold_clone_by_the_flow": by_flow}


def restored(source: Path, clone: Path, environment: Mapping[str, str], *command: str) -> dict[str, Any]:
    """Clones and gives a command; returns the seconds of the command, and which stages ran."""
    run(clone.parent, "git", "clone", "--quiet", str(source), str(clone))
    for arguments in REMOTE:
        more = [environment["AWS_ENDPOINT_URL_S3"]] if arguments[-1] == "endpointurl" else []
        run(clone, sys.executable, "-m", "dvc", "remote", *arguments, *more, environment=environment)
    start = time.monotonic()
    said = run(clone, sys.executable, "-m", *command, environment=environment)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "stages_run": sorted(set(re.findall(r"Running stage '([^']+)'", said))),  # report's outputs are git's
    }


def deployed(project: Path, environment: Mapping[str, str], start: float) -> dict[str, Any]:
    """Runs the deployment to its end; returns the seconds since a start, and the run's own summary."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", "nfm/pipeline"]
    (run_id,) = re.findall(r"UUID: (\S+)", run(project, *command, environment=environment))
    user, _, password = environment["PREFECT_API_AUTH_STRING"].partition(":")
    with httpx.Client(base_url=environment["PREFECT_API_URL"], auth=(user, password), timeout=60) as server:
        while (state := server.get(f"/flow_runs/{run_id}").json()["state"])["type"] not in ENDED:
            time.sleep(0.2)
    assert state["type"] == "COMPLETED", state
    return {"seconds": round(time.monotonic() - start, 1), "summary": state["message"]}


def run(folder: Path, *command: str, environment: Mapping[str, str] | None = None) -> str:
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


if __name__ == "__main__":
    main()
