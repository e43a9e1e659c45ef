"""One run that has ended, written to MLflow without importing it.

The import costs more CPU than all else that a flow run does which finds everything up to date. What is written here is
what MLflow's client writes for the same run; where that is not certain, nothing is written and the client has to.
"""

import base64
import json
import os
import sqlite3
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

SCHEMA = "dc11669786a5"  # revision of the tables, from `alembic_version`, that the statements below are for
USER = "unknown"  # as the client says where no tag names one
BATCH = 100  # tags in one request, MLflow's own limit
SECONDS = 10.0  # that a server or another writer of the database may take
OTHERS = (  # ways to reach a server that only the client knows
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_WORKSPACE",
)


@dataclass(frozen=True)
class FinishedRun:
    """What is known of a run.

    Attributes:
        experiment: Name of its experiment, which exists.
        name: The run's name.
        tags: Its tags.
        status: FINISHED, FAILED or KILLED.
        start: When it began, milliseconds since 1970.
        end: When it ended, likewise.
    """

    experiment: str
    name: str
    tags: Mapping[str, str]
    status: str
    start: int
    end: int


def write_finished_run(uri: str, run: FinishedRun) -> str | None:
    """Writes a run to a local database or over a server's REST interface.

    References:
        https://mlflow.org/docs/latest/api_reference/rest-api.html

    Arguments:
        uri: The tracking URI.
        run: What to write.

    Returns:
        The run's id; None where the client is needed: another kind of store, tables of another version of MLflow, no
        such experiment, settings of TLS, or a store that does not answer as expected.
    """
    try:
        if uri.startswith("sqlite:///"):
            return _insert(uri.removeprefix("sqlite:///"), run)
        if uri.startswith(("http://", "https://")) and not any(map(os.environ.get, OTHERS)):
            return _post(uri.rstrip("/"), run)
    except (OSError, ValueError, LookupError, sqlite3.Error):
        return None
    return None


def _insert(path: str, run: FinishedRun) -> str | None:
    with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", timeout=SECONDS, uri=True)) as database, database:
        if database.execute("SELECT version_num FROM alembic_version").fetchall() != [(SCHEMA,)]:
            return None
        experiments = "SELECT experiment_id, artifact_location FROM experiments"
        found = f"{experiments} WHERE name = ? AND lifecycle_stage = 'active' AND workspace = 'default'"
        [(experiment, location)] = database.execute(found, (run.experiment,)).fetchall()
        run_id = uuid.uuid4().hex
        columns = {
            "run_uuid": run_id,
            "name": run.name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": USER,
            "status": run.status,
            "start_time": run.start,
            "end_time": run.end,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"{location}/{run_id}/artifacts",
            "experiment_id": experiment,
        }
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        database.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", tuple(columns.values()))
        tags = {**run.tags, "mlflow.runName": run.name}
        rows = [(key, value, run_id) for key, value in tags.items()]
        database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", rows)
    return run_id


def _post(server: str, run: FinishedRun) -> str:
    experiment = _call(server, f"experiments/get-by-name?experiment_name={run.experiment}")["experiment"]
    content = {"experiment_id": experiment["experiment_id"], "user_id": USER}
    content |= {"run_name": run.name, "start_time": run.start}
    run_id = _call(server, "runs/create", content)["run"]["info"]["run_id"]
    tags = [{"key": key, "value": value} for key, value in run.tags.items()]
    for first in range(0, len(tags), BATCH):
        _call(server, "runs/log-batch", {"run_id": run_id, "tags": tags[first : first + BATCH]})
    _call(server, "runs/update", {"run_id": run_id, "status": run.status, "end_time": run.end})
    return run_id


def _call(server: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user:
        headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    data = None if content is None else json.dumps(content).encode()
    request = Request(f"{server}/api/2.0/mlflow/{path}", data, headers)
    with urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
