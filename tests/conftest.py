"""Shared fixtures: an environment without side effects, a Prefect server, a tiny DVC project."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import prefect_server_in

ROOT = Path(__file__).parents[1]

# Files that take a minute or more go first, the longest ones before others, so that no core is idle at the end.
LONG = ["chaos", "pipeline", "deployments", "disk", "stack", "elsewhere", "faults", "fan_out", "retrain", "zombies"]

# data > work@left, work@right > report; each command notes its name, so that runs can be counted.
GRAPH = """\
stages:
  data:
    cmd: python stage.py data.txt
    deps: [stage.py]
    outs: [data.txt]
  work:
    matrix:
      item: [left, right]
    cmd: python stage.py work/${item.item} data.txt
    params: [scale]
    deps: [data.txt]
    outs: ["work/${item.item}"]
  report:
    cmd: python stage.py report.txt work/left/file work/right/file
    deps: [work/left, work/right]
    outs: [report.txt]
"""
STAGE = """\
import os, sys, time
from pathlib import Path
target, sources = Path(sys.argv[1]), [Path(s) for s in sys.argv[2:]]
with open(os.environ["RUNS"], "a") as file:
    file.write(os.environ["DVC_STAGE"] + chr(10))
print("hello from", os.environ["DVC_STAGE"])
exec(os.environ.get("TWIST", ""))
text = " ".join([target.name, Path("params.yaml").read_text().strip()]
                + [source.read_text() for source in sources])
if target.suffix:
    target.write_text(text)
else:
    target.mkdir(parents=True, exist_ok=True)
    (target / "file").write_text(text)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@dataclass(frozen=True)
class Tiny:
    """A throw-away DVC project; the file `runs` lists the stages that were executed."""

    root: Path
    runs: Path

    @property
    def executed(self) -> list[str]:
        return sorted(self.runs.read_text().split()) if self.runs.exists() else []

    def dvc(self, *arguments: str, **environment: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        return shell(command, self.root, environment)

    def git(self, *arguments: str) -> str:
        return shell(["git", *arguments], self.root)


def shell(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command with this interpreter's programs first; returns what it printed."""
    answer = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


@pytest.fixture(scope="session", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps programs from reporting usage, from the user's configuration and from his folders."""
    folder = tmp_path_factory.mktemp("home")
    programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    patch = pytest.MonkeyPatch()
    for key, value in {
        "PATH": programs,
        "DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "PREFECT_HOME": str(folder / "prefect"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }.items():
        patch.setenv(key, value)
    for key in ("NFM_TRACKER", "NFM_PARENT_RUN", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        patch.delenv(key, raising=False)
    yield
    patch.undo()


def _tracking_uri_restored() -> Iterator[None]:
    """Undoes what mlflow does for good when it is told where to keep its runs."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


# After each test, and after what the tests of a file share.
tracking_uri_of_test = pytest.fixture(autouse=True)(_tracking_uri_restored)
tracking_uri_of_file = pytest.fixture(autouse=True, scope="module")(_tracking_uri_restored)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Iterator[str]:
    """A Prefect server with its scheduler; its API's address.

    Not Prefect's test harness, whose server schedules nothing.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path_factory.mktemp("server")
    with prefect_server_in(folder) as address, temporary_settings({PREFECT_API_URL: address}):
        yield address
        _send_what_is_left()


def _send_what_is_left() -> None:
    """Sends buffered logs and events while there still is a server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all()
    EventsWorker.drain_all()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    """An empty MLflow database; making one takes seconds, a copy none."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    """A tiny DVC project, committed, all of whose stages `dvc repro` has run."""
    folder = tmp_path_factory.mktemp("finished")
    tiny = Tiny(folder / "project", folder / "runs")
    tiny.root.mkdir()
    files = {"dvc.yaml": GRAPH, "stage.py": STAGE, "params.yaml": "scale: 1\n"}
    for name, text in files.items():
        (tiny.root / name).write_text(text)
    (tiny.root / ".gitignore").write_text("/data.txt\n/work\n/report.txt\n/.workspaces/\n")
    tiny.git("init", "--quiet")
    from dvc.repo import Repo

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny.root)
        patch.setenv("RUNS", str(tiny.runs))
        with Repo.init() as repo:
            repo.reproduce()
    tiny.git("add", "--all")
    tiny.git("commit", "--quiet", "--message", "finished")
    assert tiny.executed == ["data", "report", "work@left", "work@right"]
    return tiny.root


@pytest.fixture
def tiny(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A copy of the finished project, with nothing executed yet as far as `runs` knows."""
    tiny = Tiny(tmp_path / "project", tmp_path / "runs")
    shutil.copytree(finished, tiny.root)
    monkeypatch.setenv("RUNS", str(tiny.runs))
    monkeypatch.setenv("NFM_TRACKER", "none")
    return tiny


@pytest.fixture(scope="session")
def bucket() -> Iterator[dict[str, str]]:
    """An S3 server over HTTP, with a bucket; gives the environment that DVC needs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    import boto3

    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="store")
    yield {**environment, "ADDRESS": address}
    server.stop()
