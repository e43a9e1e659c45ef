"""A project of fast stages with this repository's flows and deployments, and workers that serve them."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nfm.config import read_mapping, with_overrides
from tests.conftest import ROOT, STAGE, shell

GRAPH = """\
stages:
  prepare:
    cmd: python stage.py data.txt
    params: [data]
    deps: [stage.py]
    outs: [data.txt]
  student:
    matrix:
      coupling: ${couplings}
    cmd: python stage.py student/${item.coupling} data.txt
    params: [student]
    deps: [data.txt, stage.py]
    outs: ["student/${item.coupling}"]
  report:
    cmd: python stage.py report.txt student/independent/file student/teacher/file
    deps: [student/independent, student/teacher, stage.py]
    outs: [report.txt]
"""
COUPLINGS = ["independent", "teacher"]
KINDS = {"nfm": "process", "cpu-pool": "process", "gpu-pool": "process", "kubernetes": "kubernetes"}


def make_project(folder: Path, overrides: Mapping[str, Any] | None = None, remote: str = "") -> str:
    """Makes a git and DVC project, committed, with prefect.yaml, flows/ and nfm/ of this repository.

    Arguments:
        folder: Where to; made.
        overrides: Of the params.
        remote: DVC's configuration, of a remote.

    Returns:
        The commit.
    """
    names = shell(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    kept = ("flows/", "nfm/", ".dvc/", "prefect.yaml", "requirements.lock")
    for name in names:
        if name.startswith(kept) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {"couplings": COUPLINGS, **(overrides or {})})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "stage.py").write_text(STAGE.replace('Path("params.yaml").read_text().strip()', '"made"'))
    (folder / ".gitignore").write_text("/data.txt\n/student\n/report.txt\n/.workspaces/\n__pycache__/\n")
    (folder / ".dvc" / "config").write_text(remote)
    shell(["git", "init", "--quiet", "--initial-branch", "main"], folder)
    shell(["git", "add", "--all"], folder)
    shell(["git", "commit", "--quiet", "--message", "project"], folder)
    return shell(["git", "rev-parse", "HEAD"], folder).strip()


def prefect(*arguments: str) -> list[str]:
    """Returns a command of Prefect's that asks nothing."""
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


@contextmanager
def workers(environments: Mapping[tuple[str, Path], Mapping[str, str]]) -> Iterator[None]:
    """Runs process workers that take one flow run each at a time; their logs are <folder>-<pool>.log.

    Arguments:
        environments: By pool and folder.
    """
    processes = []
    try:
        for (pool, folder), environment in environments.items():
            command = prefect("worker", "start", "--pool", pool, "--limit", "1", "--type", "process")
            env = {**environment, "PREFECT_WORKER_QUERY_SECONDS": "1", "NFM_HOME": str(folder)}
            with folder.with_name(f"{folder.name}-{pool}.log").open("w") as log:
                processes.append(subprocess.Popen(command, cwd=folder.parent, env=env, stdout=log, stderr=log))
        yield
    finally:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + 5  # idle by now, and slow to leave their loops
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
