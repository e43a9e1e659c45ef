"""The container files: what an engine would be told, read as docker-compose and hadolint read it."""

import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, shell
from tests.servers import free_port, wait_for_answer

INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "Dockerfile"
OWN_IMAGES = {"nfm:{version}", "nfm:{version}-gpu"}
# Each value occurs nowhere else, so that where it ends up can be told.
ENVIRONMENT = {
    "NFM_POSTGRES_PASSWORD": "postgres-password-1",
    "NFM_S3_ACCESS_KEY": "s3-access-key-2",
    "NFM_S3_SECRET_KEY": "s3-secret-key-3",
    "NFM_S3_BUCKET": "bucket-4",
    "NFM_MLFLOW_USER": "mlflow-user-5",
    "NFM_MLFLOW_PASSWORD": "mlflow-password-6",
    "NFM_MLFLOW_SECRET": "mlflow-secret-7",
    "NFM_PREFECT_AUTH": "prefect-user:prefect-password-8",
}
PORTS = {"NFM_POSTGRES_PORT": 5433, "NFM_S3_PORT": 8333, "NFM_PREFECT_PORT": 4200, "NFM_MLFLOW_PORT": 5000}
SECRETS = {name for name in ENVIRONMENT if re.search("PASSWORD|KEY|SECRET|AUTH", name)}


def compose(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs docker-compose on infra/compose.yaml, with no variables but these."""
    command = [str(Path(sys.executable).with_name("docker-compose")), "--file", str(INFRA / "compose.yaml")]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    return subprocess.run(
        [*command, "--env-file", os.devnull, "--profile", "*", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def resolved(**variables: str) -> dict[str, Any]:
    """Returns the configuration that docker-compose would hand to an engine."""
    answer = compose("config", **{**ENVIRONMENT, **variables})
    assert answer.returncode == 0, answer.stderr
    return yaml.safe_load(answer.stdout)


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return resolved()


@pytest.fixture(scope="module")
def services(stack: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return stack["services"]


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields every text inside a parsed file with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, path)
    elif isinstance(value, str):
        yield path, value


def is_pinned(image: str) -> bool:
    """Returns whether an image has a digest, or a tag that holds a version of at least two numbers."""
    return "@sha256:" in image or bool(re.fullmatch(r"[^:]+:v?\d+\.\d+(\.\d+)?(-[a-z.0-9]+)*", image))


def test_the_stack_has_its_services_and_only_the_gpu_worker_waits_for_its_profile(services):
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    every_day = ["postgres", "s3", "bucket", "prefect", "mlflow", "worker-cpu"]
    assert profiles == {**{name: [] for name in every_day}, "worker-gpu": ["gpu"]}
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["worker-gpu"]["build"]["args"] == {"TORCH": "gpu"}


def test_every_image_is_pinned_and_ours_has_the_version_of_the_package(services):
    own = {name.format(version=version()) for name in OWN_IMAGES}
    for name, service in services.items():
        assert is_pinned(service["image"]), name
        if "build" in service:
            assert service["image"] in own, name
            assert service.get("pull_policy") == "never", f"{name}: a stranger's image of our name could be pulled"
    assert own <= {service["image"] for service in services.values()}


@pytest.mark.parametrize("image", ["postgres", "postgres:latest", "postgres:17", "python:3-slim", "nfm:dev"])
def test_a_floating_tag_is_not_called_pinned(image):
    assert not is_pinned(image)


def test_every_port_is_published_on_the_loopback_interface_and_can_be_chosen(services):
    def published(services: dict[str, dict[str, Any]]) -> dict[str, int]:
        ports = [(name, port) for name, service in services.items() for port in service.get("ports", [])]
        assert {port.get("host_ip") for _, port in ports} == {"127.0.0.1"}
        return {name: int(port["published"]) for name, port in ports}

    names = ["postgres", "s3", "prefect", "mlflow"]
    assert published(services) == dict(zip(names, PORTS.values(), strict=True))
    chosen = {variable: str(port + 10_000) for variable, port in PORTS.items()}
    others = resolved(**chosen)["services"]
    assert published(others) == {name: port + 10_000 for name, port in published(services).items()}
    # What names a published port to a client moves along.
    assert others["prefect"]["environment"]["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:14200/api"
    assert "127.0.0.1:15000" in next(text for _, text in strings(others["mlflow"]) if "--allowed-hosts" in text)
    assert not any(service.get("network_mode") for service in services.values())


def test_every_service_has_a_health_check_or_says_why_not(services):
    for name, service in services.items():
        if reason := service.get("x-no-healthcheck"):
            assert service["restart"] == "no", f"{name} stays up, so its health matters"
            assert len(reason.split()) > 3, name
        else:
            check = service.get("healthcheck", {})
            assert check.get("test", [""])[0] == "CMD", name
            assert not check.get("disable"), name


def test_who_depends_on_a_service_waits_until_it_is_healthy_or_done(services):
    for name, service in services.items():
        for upstream, wait in service.get("depends_on", {}).items():
            once = "x-no-healthcheck" in services[upstream]
            expected = "service_completed_successfully" if once else "service_healthy"
            assert wait["condition"] == expected, f"{name} on {upstream}"
    for worker in ("worker-cpu", "worker-gpu"):
        assert set(services[worker]["depends_on"]) == {"bucket", "mlflow", "prefect"}


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_without_a_variable_nothing_starts_and_the_message_says_what_makes_it(missing):
    answer = compose("config", "--quiet", **{k: v for k, v in ENVIRONMENT.items() if k != missing})
    assert answer.returncode != 0
    assert f"required variable {missing} is missing" in answer.stderr
    assert "python -m infra.credentials" in answer.stderr


def test_an_empty_secret_is_refused_like_a_missing_one():
    assert compose("config", "--quiet", **{**ENVIRONMENT, "NFM_S3_SECRET_KEY": ""}).returncode != 0


def test_the_variables_are_those_that_the_credentials_command_writes():
    text = (INFRA / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{?(\w+)", text)) == {*ENVIRONMENT, *PORTS}


def test_no_secret_is_written_down(stack):
    """Whatever is called a secret comes from a variable, and a variable's value ends up nowhere else."""
    raw = yaml.safe_load((INFRA / "compose.yaml").read_text())
    for path, text in strings(raw):
        if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|TOKEN", path.rpartition("/")[2]):
            assert re.fullmatch(r"\$\{(\w+):\?[^}]*\}", text), path
        assert not re.search(r"://[^/@\s]*:[^/@\s]+@", text), f"{path}: a password in an address"
    for name in SECRETS:
        value = ENVIRONMENT[name]
        where = {path for path, text in strings(stack["services"]) if value in text}
        assert where, f"{name} is not used"
        assert all("/environment/" in path for path in where), where
        assert not [path for path, text in strings(stack["configs"]) if value in text], "readable as a file"


def test_a_service_gets_only_the_secrets_that_it_needs(services):
    wanted = {
        "postgres": {"NFM_POSTGRES_PASSWORD"},
        "s3": {"NFM_S3_ACCESS_KEY", "NFM_S3_SECRET_KEY"},
        "bucket": {"NFM_S3_ACCESS_KEY", "NFM_S3_SECRET_KEY"},
        "prefect": {"NFM_POSTGRES_PASSWORD", "NFM_PREFECT_AUTH"},
        "mlflow": SECRETS - {"NFM_PREFECT_AUTH"},
        **dict.fromkeys(["worker-cpu", "worker-gpu"], SECRETS - {"NFM_POSTGRES_PASSWORD", "NFM_MLFLOW_SECRET"}),
    }
    held = {
        name: {secret for secret in SECRETS if any(ENVIRONMENT[secret] in text for _, text in strings(service))}
        for name, service in services.items()
    }
    assert held == wanted


def test_the_servers_refuse_strangers(services):
    prefect, mlflow, s3 = (services[name] for name in ("prefect", "mlflow", "s3"))
    assert prefect["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == ENVIRONMENT["NFM_PREFECT_AUTH"]
    assert "--app-name=basic-auth" in mlflow["command"]
    assert mlflow["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    hosts = next(a for a in mlflow["command"] if a.startswith("--allowed-hosts=")).partition("=")[2].split(",")
    assert "mlflow:5000" in hosts
    assert not [host for host in hosts if "*" in host]
    assert prefect["environment"]["NFM_HOSTS"] == "prefect,localhost,127.0.0.1"
    # Without keys SeaweedFS takes everybody for an administrator; its other servers have no keys at all.
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(s3["environment"])
    assert {"-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(s3["command"])


def test_prefect_answers_to_its_names_alone(services, tmp_path):
    """Its own command on this machine, with the folder, the database and the port of here."""
    service, port = services["prefect"], free_port()
    here = {
        "--app-dir=/usr/local/lib/nfm": f"--app-dir={ROOT}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=4200": f"--port={port}",
    }
    command = [here.get(argument, argument) for argument in service["command"]]
    settings = {k: v for k, v in service["environment"].items() if "DATABASE" not in k and "STATIC" not in k}
    environment = {**os.environ, **settings, "PREFECT_HOME": str(tmp_path)}
    address = f"http://127.0.0.1:{port}/api/ready"
    with subprocess.Popen([sys.executable, "-m", *command], cwd=tmp_path, env=environment) as server:
        try:
            wait_for_answer(address, server)
            answers = {}
            for host in ("prefect:4200", "localhost:4200", "127.0.0.1", "prefect.example", "foreign.example:4200"):
                request = urllib.request.Request(address, headers={"Host": host})
                try:
                    answers[host] = urllib.request.urlopen(request, timeout=30).status
                except urllib.error.HTTPError as error:
                    answers[host] = error.code
        finally:
            server.terminate()
    assert list(answers.values()) == [200, 200, 200, 400, 400], answers


def test_what_must_last_is_on_a_volume_and_workers_share_none(stack, services):
    volumes = {
        name: {v["source"]: v["target"] for v in service.get("volumes", []) if v["type"] == "volume"}
        for name, service in services.items()
    }
    assert {name: mounted for name, mounted in volumes.items() if mounted} == {
        "postgres": {"postgres": "/var/lib/postgresql/data"},
        "s3": {"s3": "/data"},
        "worker-cpu": {"worker-cpu": "/home/nfm"},
        "worker-gpu": {"worker-gpu": "/home/nfm"},
    }
    assert set(stack["volumes"]) == {"postgres", "s3", "worker-cpu", "worker-gpu"}


def test_of_the_host_only_the_history_is_mounted_and_only_to_be_read(services):
    for name, service in services.items():
        binds = [v for v in service.get("volumes", []) if v["type"] == "bind"]
        mounted = [(Path(v["source"]), v["target"], v.get("read_only")) for v in binds]
        assert mounted == [(ROOT / ".git", "/source/.git", True)] * name.startswith("worker"), name


def test_our_containers_can_gain_no_privilege(services):
    for name, service in services.items():
        assert not service.get("privileged"), name
        assert not service.get("cap_add"), name
        assert "no-new-privileges:true" in service.get("security_opt", []), name
        if "build" in service:
            assert service.get("cap_drop") == ["ALL"], name
            assert "user" not in service, f"{name}: the image's user is not root, and stays"


def test_a_worker_may_take_as_long_to_stop_as_a_checkpoint_takes(services):
    for name in ("worker-cpu", "worker-gpu"):
        assert services[name]["stop_grace_period"] == "1m0s"


def test_a_worker_starts_in_a_checkout_of_what_is_committed_whatever_the_last_one_left(tmp_path: Path):
    def git(*arguments: str) -> str:
        return shell(["git", "-C", str(source), "-c", "init.defaultBranch=main", *arguments], tmp_path)

    def start() -> str:
        return shell(["sh", str(INFRA / "worker.sh"), "pool-9", str(source / ".git")], tmp_path, environment)

    source, programs, checkout = tmp_path / "source", tmp_path / "programs", tmp_path / "checkout"
    source.mkdir()
    programs.mkdir()
    (programs / "prefect").write_text("#!/bin/sh\npwd\necho $*\n")
    (programs / "prefect").chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    git("init", "--quiet")
    for content in ("first", "second"):
        (source / "dvc.lock").write_text(content)
        (source / ".env").write_text("secret")
        git("add", "dvc.lock")
        git("commit", "--quiet", "--message", content)
        (source / "dvc.lock").write_text("not committed")
        place, command = start().splitlines()
        assert (place, command) == (str(checkout), "worker start --pool pool-9 --type process --with-healthcheck")
        assert (checkout / "dvc.lock").read_text() == content
        assert not (checkout / ".env").exists()
        # What a run writes, what it keeps, and the lock of a git that was killed.
        (checkout / "dvc.lock").write_text("of a run")
        (checkout / "cache").write_text("kept")
        (checkout / ".git" / "index.lock").touch()
    start()
    assert (checkout / "dvc.lock").read_text() == "second"
    assert (checkout / "cache").read_text() == "kept"


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions with their arguments, comments dropped and lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def final_stage() -> list[tuple[str, str]]:
    all_of_it = instructions()
    last = max(i for i, (name, _) in enumerate(all_of_it) if name == "FROM")
    return all_of_it[last:]


def test_hadolint_finds_nothing():
    command = [str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "style", str(DOCKERFILE)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_the_image_is_built_in_stages_from_one_pinned_base():
    sources = [rest.split() for name, rest in instructions() if name == "FROM"]
    stages = {words[2] for words in sources if len(words) == 3}
    outside = [words[0] for words in sources if words[0] not in stages]
    assert len(sources) >= 3
    assert len(outside) == 1
    assert is_pinned(outside[0])
    lock = outside[0].partition(":")[2].split("-")[0]
    assert lock.rpartition(".")[0] == "3.11", "the Python of the lock and of the tests"


def test_the_container_does_not_run_as_root():
    users = [rest for name, rest in final_stage() if name == "USER"]
    assert len(users) == 1
    # By number, since Kubernetes cannot tell whether a name is root's.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])
    uid = users[0].partition(":")[0]
    after = final_stage()[[name for name, _ in final_stage()].index("USER") :]
    assert {name for name, _ in after} <= {"USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert f"--uid {uid}" in " ".join(rest for name, rest in final_stage() if name == "RUN")


def test_the_image_gets_the_versions_of_the_lock_and_no_tools_of_development():
    run = " ".join(rest for name, rest in instructions() if name == "RUN")
    assert "--constraints requirements.lock" in run
    assert "grep '^uv==' requirements.lock" in run
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    # `stack` is for servers as plain processes, without containers.
    assert set(re.findall(r"--extra (\w+)", run)) == set(extras) - {"dev", "stack", "ray"}
    assert dict(rest.split("=") for name, rest in instructions() if name == "ARG") == {"TORCH": "cpu"}
    packages = re.search(r"--no-install-recommends ([a-z ]+?) &&", " ".join(r for n, r in final_stage() if n == "RUN"))
    assert packages is not None
    assert packages[1].split() == ["git", "tini"]


def test_no_secret_and_no_data_can_enter_a_layer():
    """Only tracked files of the package and its metadata are sent to the builder."""
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*", "nothing that is not named below"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {name for names in copied for name in names}
    assert "**/__pycache__" in rules
    for name in allowed:
        assert not {".env", ".git", "artifacts", "metrics"} & set(Path(name).parts)
        tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", name], capture_output=True, text=True, check=True)
        assert tracked.stdout.strip(), f"{name} is not in the repository"
    assert not [
        rest for name, rest in instructions() if name in ("ENV", "ARG") and re.search("(?i)password|key|token", rest)
    ]
