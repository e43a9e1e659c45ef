"""The doctor says in one line what is wrong and how to mend it, whatever the servers answer."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from types import SimpleNamespace

import boto3
import pytest

from infra import answers, machine, remote
from infra.credentials import write_credentials
from infra.doctor import _finding
from infra.problem import Problem
from infra.settings import load_settings, read_env
from tests.conftest import ROOT, shell
from tests.servers import free_port


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project with credentials for servers that do not run."""
    for name in ("NFM_STACK", "NFM_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".gitignore").write_text("/.env\n")
    shell(["git", "init", "--quiet"], tmp_path)
    shell([sys.executable, "-m", "dvc", "init", "--quiet"], tmp_path)
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    write_credentials(tmp_path / ".env")
    ports(tmp_path, NFM_POSTGRES_PORT=free_port(), NFM_PREFECT_PORT=free_port(), NFM_MLFLOW_PORT=free_port())
    return tmp_path


def ports(project: Path, **values: int) -> None:
    every = {**read_env(project / ".env"), **{name: str(value) for name, value in values.items()}}
    (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in every.items()))


class Server(ThreadingHTTPServer):
    """Answers every request with one status, text and clock, and notes what was asked."""

    def __init__(self, status: int, text: str, late: float) -> None:
        server = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                body = text.encode()
                self.send_response_only(status)
                self.send_header("Date", formatdate(time() - late, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator:
    running: list[Server] = []

    def start(status: int = 200, text: str = "{}", late: float = 0.0) -> Server:
        running.append(Server(status, text, late))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_with_nothing_running_each_line_says_what_to_do_and_there_is_no_traceback(project):
    command = [sys.executable, "-m", "infra.doctor"]
    answer = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (1, "")
    lines = {line.split()[1]: line for line in answer.stdout.splitlines()}
    wrong = {"postgres", "s3", "prefect", "worker", "mlflow", "clock", "remote", "multipart"}
    assert wrong <= {name for name, line in lines.items() if line.startswith("wrong")} <= {*wrong, "disk", "gpu"}
    for name in wrong - {"worker"}:
        assert "`make stack`" in lines[name], lines[name]


def test_without_credentials_it_says_how_to_make_them_and_checks_the_rest(project):
    (project / ".env").unlink()
    command = [sys.executable, "-m", "infra.doctor"]
    answer = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    lines = {line.split()[1]: line for line in answer.stdout.splitlines()}
    assert lines["credentials"].startswith("wrong")
    assert "python -m infra.credentials" in lines["credentials"]
    assert lines["versions"].startswith("ok")
    assert answer.returncode == 1


def test_what_nobody_thought_of_is_a_line_too():
    finding = _finding("odd", lambda: str(1 / 0))
    assert str(finding).startswith("wrong odd")
    assert "ZeroDivisionError" in str(finding)


def test_an_object_goes_to_the_remote_and_back_in_one_piece_and_in_parts(project, bucket, monkeypatch):
    for key, value in bucket.items():
        if key != "ADDRESS":
            monkeypatch.setenv(key, value)
    dvc(project, "remote", "add", "--default", "mine", "s3://store/doctor")
    dvc(project, "remote", "modify", "mine", "endpointurl", bucket["ADDRESS"])
    assert remote.check_small(project).startswith("64 bytes")
    assert remote.check_multipart(project).startswith(f"{remote.PART + 1} bytes")
    client = boto3.client("s3", endpoint_url=bucket["ADDRESS"])
    assert client.list_objects_v2(Bucket="store", Prefix="doctor/")["KeyCount"] == 0
    assert not client.list_multipart_uploads(Bucket="store").get("Uploads")

    dvc(project, "remote", "modify", "mine", "url", "s3://nowhere/doctor")
    for check in (remote.check_small, remote.check_multipart):
        with pytest.raises(Problem, match="NoSuchBucket; make the bucket"):
            check(project)


def test_a_remote_that_gives_back_other_bytes_is_found(project, bucket, monkeypatch):
    dvc(project, "remote", "add", "--default", "mine", "s3://store/doctor")
    monkeypatch.setattr(remote, "_round_trip", lambda client, url, content, parts: content[:-1])
    with pytest.raises(Problem, match="other bytes"):
        remote.check_small(project)


def test_a_folder_is_a_remote(project, tmp_path):
    dvc(project, "remote", "add", "--default", "mine", str(tmp_path / "remote"))
    assert str(tmp_path / "remote") in remote.check_small(project)
    assert list((tmp_path / "remote").iterdir()) == []


def test_a_version_that_is_not_the_locks_is_named(project):
    lock = project / "requirements.lock"
    text = "numpy==0.1\npytest==0.1\nnot-there==1.0\nmoto-not-there==1.0\nelsewhere==1 ; sys_platform == 'win32'\n"
    lock.write_text(text)
    with pytest.raises(Problem) as problem:
        machine.check_versions(project)
    said = str(problem.value)
    assert all(name in said for name in ("numpy", "pytest", "not-there (missing"))
    assert not any(name in said for name in ("moto-not-there", "elsewhere"))
    assert "make .venv/.ready" in said


def test_a_disk_that_is_nearly_full_is_named(project, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**30))
    # A short path, for the sockets in it.
    with tempfile.TemporaryDirectory() as stack:
        monkeypatch.setenv("NFM_STACK", stack)
        with pytest.raises(Problem, match=r"1\.0 GiB left.*dvc gc"):
            machine.check_disk(project)


DRIVERS = {
    "a driver that fails": ("echo 'Failed to initialize NVML' >&2; exit 18", "mend the driver"),
    "a GPU that torch does not see": ("echo 'GPU 0: H100'; echo 'GPU 1: H100'", "2 GPUs and torch sees 0"),
}


@pytest.mark.parametrize(("script", "said"), DRIVERS.values(), ids=DRIVERS.keys())
def test_a_gpu_that_cannot_be_used_is_named(script, said, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(Problem, match=said):
        machine.check_gpu()


def test_no_gpu_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "CPU" in machine.check_gpu()


@pytest.mark.parametrize(("late", "good"), [(0, True), (20, True), (120, False), (-120, False)])
def test_a_clock_that_differs_is_named(late, good, project, serve):
    ports(project, NFM_PREFECT_PORT=serve(late=late).server_port)
    settings = load_settings(project)
    if good:
        assert "prefect" in machine.check_clock(settings)
    else:
        with pytest.raises(Problem, match=r"prefect's clock is [-+]1\d\d s from"):
            machine.check_clock(settings)


def test_servers_that_let_strangers_in_are_named(project, serve):
    open_to_all = serve(text='"3.8.8"')
    ports(project, NFM_PREFECT_PORT=open_to_all.server_port, NFM_MLFLOW_PORT=open_to_all.server_port + 1)
    with pytest.raises(Problem, match="without credentials"):
        answers.check_prefect(load_settings(project), project)
    ports(project, NFM_PREFECT_PORT=open_to_all.server_port + 1, NFM_MLFLOW_PORT=open_to_all.server_port)
    with pytest.raises(Problem, match="without credentials"):
        answers.check_mlflow(load_settings(project), project)


REFUSALS = {401: "`make stack` sets the one of .env", 500: "status 500", 302: "status 302"}


@pytest.mark.parametrize(("status", "said"), REFUSALS.items())
def test_servers_that_refuse_or_fail_are_named(status, said, project, serve):
    server = serve(status=status)
    ports(project, NFM_PREFECT_PORT=server.server_port, NFM_MLFLOW_PORT=free_port())
    with pytest.raises(Problem, match=said):
        answers.check_prefect(load_settings(project), project)


def test_a_pool_without_workers_is_named(project, serve):
    server = serve(text='[{"name": "gone", "status": "OFFLINE"}]')
    ports(project, NFM_PREFECT_PORT=server.server_port)
    with pytest.raises(Problem, match="no worker"):
        answers.check_worker(load_settings(project))


def test_a_server_of_another_version_is_named(project):
    with pytest.raises(Problem, match=r"has the version 0\.1, requirements.lock"):
        answers._version("mlflow", "0.1", project)


def dvc(project: Path, *arguments: str) -> None:
    shell([sys.executable, "-m", "dvc", *arguments, "--quiet"], project)
