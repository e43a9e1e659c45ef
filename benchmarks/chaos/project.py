"""A clone of this commit with tiny settings, its own stack on free ports, and what a round begins with."""

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from infra.credentials import new_secrets
from infra.files import Folder
from infra.stack import Stack
from nfm.config import read_mapping, with_overrides
from tests.test_stack import ports
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
WITHIN = 70  # seconds of silence after which a run counts as dead, instead of 600
SLOT = 60  # seconds for which a run has the deployment's one slot, unless it renews it, instead of 300
SIGN = 30  # seconds between signs of life, instead of 180: the shortest that Prefect takes
CHECKPOINT, REPORT = 40, 5  # updates between checkpoints, and between reports
# A stage trains for some seconds, so that kills land in its midst; in a short trial for a third of them.
UPDATES = {"features": 600, "teacher": 300, "student": 600}
SETTINGS = {
    **TINY,
    "couplings": ["teacher"],
    "coupling.teacher.draws": 2,  # stored, so that pairs are among the outputs
    "run.checkpoint_every": CHECKPOINT,
    "run.log_every": REPORT,
}
# Prefect reads these where its worker and its flows run.
TIMING = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": SIGN,
    "PREFECT_WORKER_QUERY_SECONDS": 2,
    "PREFECT_WORKER_HEARTBEAT_SECONDS": 5,
}
STATED = ("dvc.lock", "results/summary.json", "results/fd.csv", "results/seconds.csv")  # git has those of params.yaml
KEPT = (".env", ".stack", ".dvc/config.local", ".dvc/tmp")  # over rounds; locks are in the last
COMMAND = ("-m", "prefect", "--no-prompt", "deployment", "run", "nfm/pipeline", "--param", "push=true")


class Project:
    """The clone and its stack.

    Arguments:
        root: Where to; below a folder that PostgreSQL's user may enter.
        short: Whether to train for a third of the updates.
    """

    def __init__(self, root: Path, short: bool = False) -> None:
        self.root = root
        self.remote = ""
        run(root.parent, "git", "clone", "--quiet", str(ROOT), str(root))
        steps = {f"{stage}.train.steps": steps // (3 if short else 1) for stage, steps in UPDATES.items()}
        params = with_overrides(read_mapping(root / "params.yaml"), {**SETTINGS, **steps})
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        deploy = re.sub(r"(within|pending): \d+", rf"\1: {WITHIN}", (root / "prefect.yaml").read_text())
        # Signs of life for the one slot come more often too, so that a server that has lost it is found out.
        deploy = deploy.replace("    limit: 1\n", f"    limit: 1\n    grace_period_seconds: {SLOT}\n")
        (root / "prefect.yaml").write_text(deploy)
        run(root, "git", "rm", "--quiet", "--cached", "--ignore-unmatch", *STATED)
        for name in STATED:
            (root / name).unlink(missing_ok=True)
        run(root, "git", *AUTHOR, "commit", "--quiet", "--all", "--message", "tiny settings")
        values = {**new_secrets(), **ports(), **TIMING}
        (root / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        (root / ".env").chmod(0o600)
        self.folder = Folder.of(root)

    def start(self) -> None:
        """Starts the stack and deploys the pipeline, with the automation that finds the dead."""
        run(self.root, sys.executable, "-m", "infra.stack", "up", environment=environment_of_stack(self.root))
        self.stack = Stack(self.root)
        run(self.root, sys.executable, *DEPLOY, environment=self.environment())

    def stop(self) -> None:
        """Ends every process of the stack."""
        run(self.root, sys.executable, "-m", "infra.stack", "down", environment=environment_of_stack(self.root))

    def environment(self) -> dict[str, str]:
        """Returns what the commands of a user need."""
        programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        client = self.stack.settings.client_environment()
        return {**environment_of_stack(self.root), **client, "PATH": programs}

    def wipe(self, number: int) -> None:
        """Removes all that stages have made, here and for the next round's remote; what locks there are stays."""
        run(self.root, "git", "clean", "-dfxq", *(word for name in KEPT for word in ("-e", f"/{name}")))
        config, path = configparser.RawConfigParser(), self.root / ".dvc" / "config.local"
        config.read(path)
        self.remote = f"dvc-{number}"
        config["'remote \"stack\"'"]["url"] = f"s3://{self.stack.settings.bucket}/{self.remote}"
        with path.open("w") as file:
            config.write(file)

    def ask(self) -> str | None:
        """Gives the one command; returns the flow run's id, None where the server does not take it."""
        command = [sys.executable, *COMMAND]
        answer = subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True, check=False
        )
        found = re.findall(r"UUID: (\S+)", answer.stdout)
        return found[0] if answer.returncode == 0 and found else None


AUTHOR = ("-c", "user.name=chaos", "-c", "user.email=chaos@localhost")
DEPLOY = ("-m", "prefect", "--no-prompt", "deploy", "--name", "pipeline")


def environment_of_stack(root: Path) -> dict[str, str]:
    """Returns this process's environment without what would point elsewhere."""
    foreign = ("NFM_", "PREFECT_", "MLFLOW_", "AWS_", "PYTEST_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {"NFM_TRACKER": "jsonl", "NFM_WORKERS": "2", "DVC_SITE_CACHE_DIR": str(root.parent / "site")}
    return {**inherited, **own, "DVC_NO_ANALYTICS": "1", "PREFECT_HOME": str(root.parent / "prefect")}


def run(folder: Path, *command: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end, which has to be a good one; returns what it has printed."""
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr
