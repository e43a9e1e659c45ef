"""MLflow, Prefect and its worker, as services of the stack."""

import hashlib
import sys
from pathlib import Path

from infra.files import Folder, write_private
from infra.service import Service
from infra.settings import HOST, NAMES, Settings

POOL = "nfm"
TRUST = 60  # seconds for which MLflow takes a password that it has checked; a changed one counts at once
QUIET = {"DO_NOT_TRACK": "true", "PYTHONUNBUFFERED": "1"}


def mlflow(folder: Folder, settings: Settings) -> Service:
    """Returns MLflow's server: on PostgreSQL, artifacts through it into the bucket, users with passwords."""
    home = folder.private("mlflow")
    access = home / "basic_auth.ini"
    # Without the cache each request hashes a password, a tenth of a second; a stage makes dozens.
    text = (
        f"[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = {TRUST}\n"
        f"database_uri = {settings.database('mlflow_auth')}\n"
    )
    write_private(access, text)
    port = settings.mlflow_port
    environment = {
        **QUIET,
        **settings.store_environment(),
        "MLFLOW_AUTH_CONFIG_PATH": str(access),
        "MLFLOW_AUTH_ADMIN_USERNAME": settings["NFM_MLFLOW_USER"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings["NFM_MLFLOW_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings["NFM_MLFLOW_SECRET"],
        "MLFLOW_BACKEND_STORE_URI": settings.database("mlflow"),
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{settings.bucket}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": settings.s3_url,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name}{end}" for name in NAMES for end in ("", f":{port}")),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "NFM_STACK_FILE": hashlib.sha256(text.encode()).hexdigest(),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    return _service("mlflow", [*command, "--host", HOST, "--port", str(port)], environment, home, port)


def prefect(folder: Folder, settings: Settings) -> Service:
    """Returns Prefect's server with its background services: on PostgreSQL, with a password."""
    port, access = settings.prefect_port, settings["NFM_PREFECT_AUTH"]
    environment = {
        **QUIET,
        "NFM_GUARDED": "prefect.server.api.server:create_app",
        "NFM_HOSTS": ",".join(NAMES),
        "PREFECT__SERVER_FINAL": "1",  # as `prefect server start` has it
        "PREFECT_HOME": str(folder.private("prefect")),
        "PREFECT_API_AUTH_STRING": access,  # for its own services
        "PREFECT_SERVER_API_AUTH_STRING": access,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, as by default, who holds which slot would be lost with the server: a run under way would be ended
        # at its next renewal, and a limit such as `gpu` would keep a slot that nobody gives back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": settings.database("prefect", "postgresql+asyncpg"),
        "PREFECT_SERVER_UI_API_URL": settings.prefect_url,
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "infra.hosts:guarded", "--log-level", "warning"]
    return _service("prefect", [*command, "--host", HOST, "--port", str(port)], environment, folder.home, port)


def worker(folder: Folder, settings: Settings) -> Service:
    """Returns a worker that runs flows in processes of this machine, in the project's folder."""
    programs = Path(sys.executable).parent
    environment = {
        **QUIET,
        **settings.client_environment(),
        "PREFECT_HOME": str(folder.private("prefect")),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [str(programs / "prefect"), "worker", "start", "--type", "process", "--pool", POOL]
    return _service("worker", [*command, "--name", "stack"], environment, folder.root, None)


def _service(name: str, command: list[str], environment: dict[str, str], folder: Path, port: int | None) -> Service:
    return Service(name, tuple(command), environment, str(folder), port)
