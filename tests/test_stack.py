"""The stack really starts, in a folder of its own on free ports: refuses strangers, mends what is killed, and ends."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest

from infra.bucket import make_client, write_remote
from infra.credentials import new_secrets, write_credentials
from infra.doctor import examine
from infra.files import Folder
from infra.http import ask
from infra.leftovers import MARK, members
from infra.postgres import find_programs
from infra.settings import load_settings, read_env
from infra.stack import Stack
from infra.store import check_packages
from infra.supervisor import Supervisor
from nfm.errors import InputError
from tests.conftest import ROOT, shell

FLOW = """\
from pathlib import Path

from prefect import flow


@flow
def note(word: str) -> None:
    Path("noted.txt").write_text(word)
"""
SERVICES = {"postgres", "s3", "s3-account", "s3-container", "s3-object", "s3-updater", "prefect", "mlflow", "worker"}


def missing() -> str | None:
    """What the stack needs and this machine lacks."""
    try:
        find_programs()
        check_packages()
        import psycopg2  # noqa: F401
    except (InputError, ImportError) as error:
        return str(error)
    return None


LACK = missing()
real = pytest.mark.skipif(LACK is not None, reason=LACK or "")


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of infra's in a folder."""
    command = [sys.executable, "-m", *arguments]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NFM_", "PREFECT_API", "MLFLOW_TRACKING"))}
    return subprocess.run(
        command, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def ports() -> dict[str, str]:
    """Free ports, the S3 server's with three more above it; below those that systems give to connections."""
    for _ in range(100):
        first = 20_000 + 7 * secrets.randbelow(1_700)
        if all(is_free(first + i) for i in range(7)):
            names = ("NFM_POSTGRES_PORT", "NFM_PREFECT_PORT", "NFM_MLFLOW_PORT")
            return {"NFM_S3_PORT": str(first), **{name: str(first + 4 + i) for i, name in enumerate(names)}}
    raise AssertionError("no seven free ports in a row")


def is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def make_project(folder: Path) -> Path:
    """A DVC project with one output, random credentials and free ports."""
    folder.mkdir()
    (folder / ".gitignore").write_text("/.env\n/.stack/\n/data.txt\n")
    (folder / "data.txt").write_text("what is stored\n" * 1000)
    (folder / "flow.py").write_text(FLOW)
    shutil.copy(ROOT / "requirements.lock", folder)
    shell(["git", "init", "--quiet"], folder)
    shell([sys.executable, "-m", "dvc", "init", "--quiet"], folder)
    write_credentials(folder / ".env")
    set_values(folder, **ports())
    return folder


def set_values(folder: Path, **values: str) -> None:
    text = "".join(f"{name}={value}\n" for name, value in {**read_env(folder / ".env"), **values}.items())
    (folder / ".env").write_text(text)


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    # Not pytest's own folder, which is closed to the user that PostgreSQL runs as under root.
    home = Path(tempfile.mkdtemp(prefix="nfm-"))
    home.chmod(0o755)
    patch = pytest.MonkeyPatch()
    for name in ("NFM_STACK", "NFM_ENV_FILE"):
        patch.delenv(name, raising=False)
    try:
        yield make_project(home / "project")
    finally:
        run(home / "project", "infra.stack", "down")
        patch.undo()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def stack(project: Path) -> Stack:
    """The stack, started by the command."""
    answer = run(project, "infra.stack", "up")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "ready after" in answer.stdout
    return Stack(project)


def pids(stack: Stack) -> dict[str, int]:
    return {name: condition.pid for name, condition in stack.supervisor.conditions().items()}


def mlflow(stack: Stack, path: str, content: dict | None = None) -> dict:
    access = f"{stack.settings['NFM_MLFLOW_USER']}:{stack.settings['NFM_MLFLOW_PASSWORD']}"
    answer = ask(f"{stack.settings.mlflow_url}/api/2.0/mlflow/{path}", access, content)
    assert answer.status == 200, answer
    return answer.json()


def prefect(stack: Stack, path: str, content: dict | None = None):
    answer = ask(f"{stack.settings.prefect_url}/{path}", stack.settings["NFM_PREFECT_AUTH"], content)
    assert answer.status in (200, 201), answer
    return answer.json()


@real
@pytest.mark.timeout(1800)
class TestStack:
    """In this order, over one stack."""

    def test_a_second_start_changes_nothing(self, stack, project):
        before = pids(stack)
        assert before.keys() == SERVICES
        files = {path: path.stat().st_mtime_ns for path in (project / ".dvc/config.local", stack.folder.env)}
        assert run(project, "infra.stack", "up").returncode == 0
        assert pids(stack) == before
        assert {path: path.stat().st_mtime_ns for path in files} == files
        status = run(project, "infra.stack", "status")
        assert status.returncode == 0
        assert {line.split()[0] for line in status.stdout.splitlines()} == SERVICES

    def test_nothing_listens_beyond_this_machine(self, stack):
        found = [c for process in members(stack.folder) for c in process.net_connections("tcp")]
        listening = [c.laddr for c in found if c.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        settings = stack.settings
        wanted = {settings.s3_port + i for i in range(4)}
        wanted |= {settings.postgres_port, settings.prefect_port, settings.mlflow_port}
        assert {address.port for address in listening} >= wanted

    def test_secrets_are_shown_to_nobody_else(self, stack, project):
        hidden = [stack.settings[name] for name in new_secrets()]
        for process in members(stack.folder):
            line = " ".join(process.cmdline())
            assert not [secret for secret in hidden if secret in line], process.name()
        for path in (project / ".env", stack.folder.env, project / ".dvc/config.local"):
            assert path.stat().st_mode & 0o777 == 0o600
        assert not shell(["git", "status", "--porcelain", "--", ".env", ".stack", ".dvc/config.local"], project)
        logs = "".join(path.read_text(errors="replace") for path in stack.folder.logs.iterdir())
        assert not [secret for secret in hidden if secret in logs]

    def test_strangers_and_foreign_names_are_refused(self, stack):
        settings = stack.settings
        search = f"{settings.mlflow_url}/api/2.0/mlflow/experiments/search"
        access = f"{settings['NFM_MLFLOW_USER']}:{settings['NFM_MLFLOW_PASSWORD']}"
        own, foreign = {}, {"Host": "foreign.example"}
        assert [ask(search, a, {"max_results": 1}, own).status for a in (access, "nfm:no", None)] == [200, 401, 401]
        assert ask(search, access, {"max_results": 1}, foreign).status == 403
        pools = f"{settings.prefect_url}/work_pools/filter"
        access = settings["NFM_PREFECT_AUTH"]
        assert [ask(pools, a, {}, own).status for a in (access, "nfm:no", None)] == [200, 401, 401]
        assert ask(pools, access, {}, foreign).status == 400
        assert ask(f"{settings.s3_url}/{settings.bucket}").status in (403, 412)
        assert ask(f"{settings.s3_url}/v1/AUTH_nfm/{settings.bucket}").status == 401
        with pytest.raises(psycopg2().OperationalError, match="password authentication failed"):
            psycopg2().connect(settings.database("prefect").replace(settings["NFM_POSTGRES_PASSWORD"], "no"))

    def test_the_doctor_finds_nothing(self, stack, project):
        findings = list(examine(project))
        assert {finding.name for finding in findings if not finding.good} <= {"disk"}, findings

    def test_dvc_pushes_and_pulls(self, stack, project):
        content = (project / "data.txt").read_text()
        shell([sys.executable, "-m", "dvc", "add", "--quiet", "data.txt"], project)
        shell([sys.executable, "-m", "dvc", "push", "--quiet"], project)  # asks by HEAD for what is there
        shutil.rmtree(project / ".dvc/cache")
        (project / "data.txt").unlink()
        shell([sys.executable, "-m", "dvc", "pull", "--quiet"], project)
        assert (project / "data.txt").read_text() == content

    def test_mlflow_keeps_a_run_and_its_artifact_in_the_bucket(self, stack):
        experiment = mlflow(stack, "experiments/create", {"name": "kept"})["experiment_id"]
        run_id = mlflow(stack, "runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
        mlflow(stack, "runs/log-metric", {"run_id": run_id, "key": "fd", "value": 1.5, "timestamp": 1, "step": 4})
        found = mlflow(stack, f"runs/get?run_id={run_id}")["run"]
        assert [(each["key"], each["value"], each["step"]) for each in found["data"]["metrics"]] == [("fd", 1.5, 4)]
        place = found["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        address = f"{stack.settings.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/{place}/grid.txt"
        access = f"{stack.settings['NFM_MLFLOW_USER']}:{stack.settings['NFM_MLFLOW_PASSWORD']}"
        header = {"Authorization": f"Basic {b64encode(access.encode()).decode()}"}
        with urlopen(Request(address, b"a grid", header, method="PUT")) as answer:
            assert answer.status == 200
        where = {"Bucket": stack.settings.bucket, "Key": f"mlflow/{place}/grid.txt"}
        assert make_client(stack.settings).get_object(**where)["Body"].read() == b"a grid"

    def test_the_worker_runs_a_deployment(self, stack, project):
        flow = prefect(stack, "flows/", {"name": "note"})["id"]
        content = {"name": "tiny", "flow_id": flow, "work_pool_name": "nfm", "entrypoint": "flow.py:note"}
        # As `prefect deploy` writes it where prefect.yaml has no steps of its own.
        pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}]
        content |= {"pull_steps": pull, "enforce_parameter_schema": False}
        deployment = prefect(stack, "deployments/", content)
        asked = {"parameters": {"word": "done"}, "state": {"type": "SCHEDULED"}}
        run_id = prefect(stack, f"deployments/{deployment['id']}/create_flow_run", asked)["id"]
        wait_for(lambda: prefect(stack, f"flow_runs/{run_id}")["state_type"] in ("COMPLETED", "FAILED", "CRASHED"))
        assert prefect(stack, f"flow_runs/{run_id}")["state_type"] == "COMPLETED"
        assert (project / "noted.txt").read_text() == "done"

    def test_what_is_killed_comes_back(self, stack):
        before = pids(stack)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(pid not in (0, before[name]) for name, pid in pids(stack).items()))
        # A child of MLflow's that was orphaned must not answer in the place of the new one.
        wait_for(lambda: all(os.path.exists(f"/proc/{pid}") for pid in pids(stack).values()) and own_children(stack))
        wait_for(lambda: all(stack.answers(name) for name in SERVICES))
        assert mlflow(stack, "experiments/get-by-name?experiment_name=kept")["experiment"]["name"] == "kept"
        assert make_client(stack.settings).list_objects_v2(Bucket=stack.settings.bucket)["KeyCount"] > 0

    def test_a_backup_is_restored_under_new_secrets_after_the_supervisor_was_killed(self, stack, project):
        backup = project.parent / "backup"
        answer = run(project, "infra.backup", "save", str(backup))
        assert answer.returncode == 0, answer.stderr
        key = next(iter(json.loads((backup / "backup.json").read_text())["objects"]))
        client, old = make_client(stack.settings), stack.settings
        content = client.get_object(Bucket=old.bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=old.bucket, Key=key)
        experiment = mlflow(stack, "experiments/get-by-name?experiment_name=kept")["experiment"]["experiment_id"]
        mlflow(stack, "experiments/delete", {"experiment_id": experiment})
        write_credentials(project / ".env", rotate=True)
        orphans = set(pids(stack).values())
        os.kill(int((stack.folder.home / "supervisord.pid").read_text()), signal.SIGKILL)

        answer = run(project, "infra.backup", "restore", str(backup))
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert not orphans & {process.pid for process in members(stack.folder)}
        new = Stack(project)
        assert mlflow(new, "experiments/get-by-name?experiment_name=kept")["experiment"]["lifecycle_stage"] == "active"
        assert make_client(new.settings).get_object(Bucket=old.bucket, Key=key)["Body"].read() == content
        assert prefect(new, "flows/name/note")["name"] == "note"
        access = f"{old['NFM_MLFLOW_USER']}:{old['NFM_MLFLOW_PASSWORD']}"
        assert ask(f"{old.mlflow_url}/version", access).status == 401
        assert ask(f"{old.prefect_url}/admin/version", old["NFM_PREFECT_AUTH"]).status == 401
        with pytest.raises(psycopg2().OperationalError, match="password authentication failed"):
            psycopg2().connect(old.database("prefect"))
        with pytest.raises(Exception, match=r"403|InvalidAccessKeyId|SignatureDoesNotMatch"):
            make_client(old).list_buckets()

    def test_down_leaves_no_process(self, stack, project):
        assert members(stack.folder)
        answer = run(project, "infra.stack", "down")
        assert answer.returncode == 0, answer.stderr
        assert members(stack.folder) == []
        assert run(project, "infra.stack", "down").returncode == 0
        assert run(project, "infra.stack", "status").returncode == 1


def own_children(stack: Stack) -> bool:
    """Whether whoever listens at MLflow's port descends from the process that the supervisor has started."""
    parent = pids(stack)["mlflow"]
    for process in members(stack.folder, "mlflow"):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == stack.settings.mlflow_port:
                return parent in (process.pid, *(above.pid for above in process.parents()))
    return False


def psycopg2():
    import psycopg2

    return psycopg2


# What follows starts no server.


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nfm-"))
    folder.chmod(0o755)
    for name in ("NFM_STACK", "NFM_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    yield make_project(folder / "project")
    shutil.rmtree(folder)


def test_credentials_are_random_private_and_kept(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    answers = [run(tmp_path, "infra.credentials", NFM_ENV_FILE=str(path)) for path in (first, second)]
    assert [answer.returncode for answer in answers] == [0, 0]
    one, other = read_env(first), read_env(second)
    assert all(len(one[name]) >= 16 and one[name] != other[name] for name in new_secrets())
    assert first.stat().st_mode & 0o777 == 0o600
    again = run(tmp_path, "infra.credentials", NFM_ENV_FILE=str(first))
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "--rotate" in again.stderr
    assert read_env(first) == one


def test_rotation_renews_every_secret_and_keeps_the_rest(bare):
    before = read_env(bare / ".env")
    set_values(bare, NFM_S3_BUCKET="other", EXTRA="mine", NFM_S3_ACCESS_KEY="team:key")
    assert run(bare, "infra.credentials", "--rotate").returncode == 0
    after = read_env(bare / ".env")
    assert {name for name in after if after[name] != before.get(name)} == {*new_secrets(), "NFM_S3_BUCKET", "EXTRA"}
    assert (after["NFM_S3_BUCKET"], after["EXTRA"]) == ("other", "mine")
    assert after["NFM_S3_ACCESS_KEY"].startswith("team:")  # whose buckets they are


def test_credentials_that_git_would_publish_are_not_written(bare):
    (bare / ".gitignore").write_text("")
    (bare / ".env").unlink()
    answer = run(bare, "infra.credentials")
    assert (answer.returncode, (bare / ".env").exists()) == (2, False)
    assert "not ignored by git" in answer.stderr


WRONG = {
    "no such port": ({"NFM_MLFLOW_PORT": "http"}, "NFM_MLFLOW_PORT"),
    "a port of root's": ({"NFM_S3_PORT": "80"}, "NFM_S3_PORT"),
    "one port twice": ({"NFM_PREFECT_PORT": "7001", "NFM_MLFLOW_PORT": "7001"}, "7001"),
    "inside the S3 server's four": ({"NFM_S3_PORT": "7001", "NFM_MLFLOW_PORT": "7003"}, "7003"),
    "a statement in a password": ({"NFM_POSTGRES_PASSWORD": "a'; DROP TABLE b; --"}, "NFM_POSTGRES_PASSWORD"),
    "a line in a password": ({"NFM_S3_SECRET_KEY": "a b"}, "NFM_S3_SECRET_KEY"),
    "a short password": ({"NFM_MLFLOW_PASSWORD": "short"}, "NFM_MLFLOW_PASSWORD"),
    "no account": ({"NFM_S3_ACCESS_KEY": "key"}, "NFM_S3_ACCESS_KEY"),
    "a path": ({"NFM_S3_BUCKET": "../up"}, "NFM_S3_BUCKET"),
}


@pytest.mark.parametrize(("values", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_named_and_a_secret_not_repeated(values, named, bare):
    set_values(bare, **values)
    with pytest.raises(InputError, match=named) as error:
        load_settings(bare)
    secret = [value for name, value in values.items() if name in new_secrets()]
    assert not any(value in str(error.value) for value in secret)


def test_a_missing_or_open_file_is_named(bare):
    (bare / ".env").chmod(0o644)
    with pytest.raises(InputError, match="644"):
        load_settings(bare)
    (bare / ".env").unlink()
    answer = run(bare, "infra.stack", "up")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "python -m infra.credentials" in answer.stderr


@real
@pytest.mark.parametrize("above", [0, 2])
def test_a_busy_port_is_named_before_anything_starts(bare, above):
    port = load_settings(bare).s3_port + above
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        answer = run(bare, "infra.stack", "up")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer.stderr
    assert str(port) in answer.stderr
    assert "NFM_S3_PORT" in answer.stderr
    assert str(os.getpid()) in answer.stderr
    assert members(Folder.of(bare)) == []


@real
def test_a_folder_that_is_no_project_is_refused(bare):
    shutil.rmtree(bare / ".dvc")
    answer = run(bare, "infra.stack", "up")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "no DVC project" in answer.stderr


@real
@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as the tests' own user")
def test_a_folder_that_postgresqls_user_cannot_enter_is_refused(bare):
    bare.parent.chmod(0o700)
    answer = run(bare, "infra.stack", "up")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "NFM_STACK" in answer.stderr
    assert members(Folder.of(bare)) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("infra.store.PACKAGES", {"nowhere": "swift-nowhere"})
    with pytest.raises(InputError, match="swift-nowhere is not installed; apt-get install"):
        check_packages()


def test_a_path_too_long_for_sockets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_STACK", str(tmp_path / ("long" * 25)))
    with pytest.raises(InputError, match="NFM_STACK"):
        Folder.of(tmp_path)


def test_the_remote_keeps_what_else_dvc_was_told(bare):
    path = bare / ".dvc/config.local"
    path.write_text("[cache]\n    dir = /elsewhere\n['remote \"mine\"']\n    url = /mine\n")
    write_remote(bare, load_settings(bare))
    told = shell([sys.executable, "-m", "dvc", "config", "--list"], bare)
    wanted = {"cache.dir=/elsewhere", "remote.mine.url=/mine", "core.remote=stack", "remote.stack.url=s3://nfm/dvc"}
    assert wanted <= set(told.splitlines())
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_the_stacks_own_processes_are_ended(tmp_path):
    """A shell that works in the stack's folder, or whose environment points at it, is none of them."""
    folder = Folder(tmp_path, tmp_path / ".stack")
    folder.make()
    sleep = ["sleep", "60"]
    word = secrets.token_hex(4)
    with (
        subprocess.Popen(sleep, env={**os.environ, MARK: str(folder.home)}) as own,
        subprocess.Popen(sleep, env={**os.environ, MARK: f"{folder.home}-{word}"}) as other,
        subprocess.Popen(sleep, env={**os.environ, "NFM_STACK": str(folder.home)}, cwd=folder.home) as user,
    ):
        wait_for(lambda: bool(members(folder)), 10)
        found = [process.pid for process in members(folder)]
        for child in (own, other, user):
            child.kill()
    assert found == [own.pid]


def test_a_supervisor_that_was_never_started_is_not_alive(tmp_path):
    assert not Supervisor(Folder(tmp_path, tmp_path)).is_alive()
