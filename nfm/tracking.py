"""The history of executed stages, in MLflow if installed. The only file that imports mlflow."""

import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from nfm.errors import InputError
from nfm.finished_run import FinishedRun, write_finished_run
from nfm.lineage import read_by, settings_of
from nfm.notes import EXPERIMENT_NOTE, FLOW_NOTE, note_of
from nfm.tracker import JsonLines, NullTracker, Tracker, flatten, record_of, status_of

EXPERIMENT = "nfm"
PARENT = "NFM_PARENT_RUN"  # run id of the flow run, from the flow to its stages
YARDSTICK = "yardstick"  # tag of an evaluation: what its figures were measured with, as JSON
NOTE = "mlflow.note.content"  # tag that the UI shows as the description
# What the experiment is: its description, and its kind, which the UI would else ask for: training, no language models.
ABOUT = {NOTE: EXPERIMENT_NOTE, "mlflow.experimentKind": "custom_model_development"}
KINDS = ("none", "jsonl", "mlflow")
FLUSH = 1000  # buffered metrics, MLflow's own limit for a batch
FLUSH_SECONDS = 5.0
RETRIES = "4"  # half a minute until a server counts as away, with MLflow's growing pauses; its own 7 are four minutes


class MLflowTracker(NullTracker):
    """Writes an MLflow run, with metrics sent in batches and the machine's own metrics.

    An outage of the tracking server is reported on stderr and costs no training: what could not
    be sent is kept and sent with the next batch.

    Arguments:
        uri: The tracking URI.
        root: Folder of the project, for the artifacts of a local database.
        address: The stage's name in dvc.yaml.
    """

    def __init__(self, uri: str, root: Path, address: str) -> None:
        self._mlflow, self._client = connect(uri)
        self._uri, self._root, self._address = uri, root, address
        self._stage, _, self._item = address.partition("@")
        self._origin = dict[str, str]()
        tags = {"mlflow.runName": address, "mlflow.source.name": f"nfm {address}", NOTE: note_of(address)}
        if parent := os.environ.get(PARENT):
            tags["mlflow.parentRunId"] = parent
        with _answering(uri):
            run = self._client.create_run(_experiment(self._client, uri, root), tags=tags)
        self.run_id: str | None = run.info.run_id
        self._buffer: list[Any] = []
        self._sent = time.monotonic()
        self._warned = False

    def params(self, mapping: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in flatten(mapping).items()]
        for start in range(0, len(params), 100):
            self._send(params=params[start : start + 100])

    def tags(self, mapping: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._origin |= {key: str(value) for key, value in mapping.items()}
        self._send(tags=[RunTag(key, str(value)) for key, value in mapping.items()])
        if self._stage == "evaluate" and "coupling" in mapping:
            told = {key: mapping[key] for key in ("coupling", "seed") if key in mapping}
            self.params(told | settings_of(str(mapping["coupling"]), self._root))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = _now()
        if self._stage == "evaluate" and "fd" in values:
            # Axes of parallel coordinates have no steps.
            values = {**values, f"at_nfe/fd_{step:02}": values["fd"]}
        self._buffer += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._buffer) >= FLUSH or time.monotonic() - self._sent > FLUSH_SECONDS:
            self._flush()

    def image(self, path: Path, name: str) -> None:
        self.artifact(path, f"images/{name}")

    def artifact(self, path: Path, name: str) -> None:
        folder, _, file = name.rpartition("/")
        with self._outage(), tempfile.TemporaryDirectory() as temporary:
            shutil.copyfile(path, Path(temporary) / file)
            self._client.log_artifact(self.run_id, str(Path(temporary) / file), folder or None)

    def model(self, path: Path) -> None:
        from nfm.registry.logged import log_student, makes_images

        if not makes_images(path):
            return  # latents: nobody could look at what it makes
        with self._outage():
            log_student(
                self._mlflow, self._client, path, uri=self._uri, root=self._root, run_id=self.run_id, tags=self._origin
            )

    def __enter__(self) -> Self:
        self._mlflow.start_run(run_id=self.run_id, log_system_metrics=True)
        self._inputs()
        if (self._root / "params.yaml").is_file():
            self.artifact(self._root / "params.yaml", "params.yaml")
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None and self._stage.startswith("evaluate"):
            self._measured()
        self._flush()
        with self._outage():
            self._mlflow.end_run(status_of(error))
        if self._buffer:
            print(f"nfm: {len(self._buffer)} metrics never reached MLflow", file=sys.stderr)

    def _inputs(self) -> None:
        """Names what the stage reads as inputs of the run, by DVC's hash: data, a coupling, a student."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        datasets = [
            DatasetInput(
                Dataset(one.name, one.digest, "dvc", json.dumps(one.source), profile=json.dumps(one.profile)),
                [InputTag("mlflow.data.context", one.role)],
            )
            for one in read_by(self._address, self._root)
        ]
        with self._outage():
            models = [LoggedModelInput(model) for model in self._students()]
            if datasets or models:
                self._client.log_inputs(self.run_id, datasets, models)

    def _students(self) -> list[str]:
        """Returns the logged model of the student that is evaluated, if this store holds it."""
        made_by = record_of(self._root, f"student@{self._item}").get("run_id") if self._stage == "evaluate" else None
        try:
            outputs = self._client.get_run(made_by).outputs if made_by else None
        except self._mlflow.MlflowException:
            return []  # it came by DVC from where another store is
        return [output.model_id for output in outputs.model_outputs] if outputs else []

    def _measured(self) -> None:
        """Keeps the metrics file of an evaluation, and what its figures were measured with."""
        path = self._root / "metrics" / self._stage / f"{self._item}.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            return
        yardstick = content.get("yardstick") or {}
        nfes = sorted({int(setting.rpartition("-")[2]) for setting in content.get("accuracy", {})})
        if self._stage == "evaluate":
            self.params({"nfe": " ".join(map(str, nfes))})
        self.tags({YARDSTICK: json.dumps(yardstick, sort_keys=True)})
        self.artifact(path, "metrics.json")

    def _flush(self) -> None:
        self._sent = time.monotonic()
        while self._buffer and self._send(metrics=self._buffer[:FLUSH]):
            del self._buffer[:FLUSH]

    def _send(self, **content: Any) -> bool:
        with self._outage():
            self._client.log_batch(self.run_id, **content)
            return True
        return False

    @contextmanager
    def _outage(self):
        """Turns a failure of MLflow into one line on stderr."""
        try:
            yield
        except (self._mlflow.MlflowException, OSError) as error:
            if not self._warned:
                print(f"nfm: MLflow did not take a report: {_line(error)}", file=sys.stderr)
            self._warned = True


class NoParent:
    """A flow run that leaves no run of its own."""

    run_id: str | None = None

    @property
    def link(self) -> str | None:
        """The run's address in MLflow's UI, where that is a server's."""
        return None

    def environment(self) -> dict[str, str]:
        """Returns the variables that make a stage's run a child of this one."""
        return {}

    def note(self, stage: str, outcome: str, run_id: str | None) -> None:
        """Writes down how a stage came up to date, and which run made its outputs."""

    def artifact(self, path: Path) -> None:
        """Keeps a copy of a file under its own name."""

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""


class Parent(NoParent):
    """The MLflow run of a flow run, over the runs of the stages that it executes.

    It is made when the first stage asks for its environment, or else at its close: a flow run that
    finds all stages up to date does not import mlflow. Safe to use from several threads.
    """

    def __init__(self, uri: str, root: Path, name: str, tags: Mapping[str, str]) -> None:
        self._uri, self._root, self._name, self._tags = uri, root, name, {NOTE: FLOW_NOTE, **tags}
        self._start = _now()
        self._lock = threading.Lock()

    @property
    def link(self) -> str | None:
        address = interface_of(self._uri)
        return f"{address}/#/runs/{self.run_id}" if address and self.run_id else None

    def environment(self) -> dict[str, str]:
        with self._lock:
            if self.run_id is None:
                self._open()
        return {PARENT: self.run_id or "", "MLFLOW_TRACKING_URI": self._uri}

    def note(self, stage: str, outcome: str, run_id: str | None) -> None:
        # Tags of MLflow may not hold an "@".
        key = stage.replace("@", "/")
        with self._lock:
            self._tags |= {f"outcome.{key}": outcome, f"made_by.{key}": run_id or "unknown"}

    def artifact(self, path: Path) -> None:
        self.environment()  # which makes the run
        with _answering(self._uri):
            self._client.log_artifact(self.run_id, str(path))

    def close(self, status: str) -> None:
        if self.run_id is None:
            run = FinishedRun(EXPERIMENT, self._name, self._tags, status, self._start, _now())
            self.run_id = write_finished_run(self._uri, run)
            if self.run_id is not None:
                return
            self._open()
        with _answering(self._uri):
            with self._lock:
                tags = dict(self._tags)
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)
            self._end_children()
            self._client.set_terminated(self.run_id, status)

    def _open(self) -> None:
        self._client = _client(self._uri)
        with _answering(self._uri):
            experiment = _experiment(self._client, self._uri, self._root)
            run = self._client.create_run(experiment, self._start, self._tags, self._name)
        self.run_id = run.info.run_id

    def _end_children(self) -> None:
        """Ends the runs of stages that were killed and could not do so themselves."""
        experiment = _experiment(self._client, self._uri, self._root)
        children = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], children):
            self._client.set_terminated(run.info.run_id, "KILLED")


def open_tracker(address: str, root: Path) -> Tracker:
    """Returns the tracker of one execution of a stage, to be entered as a context.

    MLflow where it is installed, at MLFLOW_TRACKING_URI or else in <root>/mlflow.db; JSON lines
    under <root>/logs where not. NFM_TRACKER=none, jsonl or mlflow overrides. Of several processes
    only the first tracks.

    Arguments:
        address: The stage's name in dvc.yaml, such as "student@teacher-0".
        root: The project's folder.

    Raises:
        InputError: NFM_TRACKER is unknown, or MLflow does not answer.
    """
    kind = _kind()
    if kind == "none" or os.environ.get("RANK", "0") != "0":
        return NullTracker()
    if kind == "jsonl":
        return JsonLines(root / "logs", address)
    return MLflowTracker(_uri(root), root, address)


def open_parent(root: Path, name: str, tags: Mapping[str, str]) -> NoParent:
    """Returns the run of a flow run; one that does nothing where MLflow is not the tracker.

    Arguments:
        root: The folder whose mlflow.db is used where MLFLOW_TRACKING_URI is not set.
        name: The run's name.
        tags: The run's tags.
    """
    return Parent(_uri(root), root, name, tags) if _kind() == "mlflow" else NoParent()


def is_mlflow() -> bool:
    """Whether MLflow is the tracker."""
    return _kind() == "mlflow"


def tracking_uri(root: Path) -> str:
    """Returns MLFLOW_TRACKING_URI, or else the address of <root>/mlflow.db."""
    return _uri(root)


def interface_of(uri: str) -> str | None:
    """Returns the address of the UI at a tracking URI, without credentials; None where that is no server."""
    scheme, found, rest = uri.partition("://")
    if not found or scheme not in ("http", "https"):
        return None
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def connect(uri: str) -> tuple[Any, Any]:
    """Imports mlflow; returns it and a client of a tracking URI, which becomes the one of this process."""
    mlflow, client = _mlflow(), _client(uri)
    mlflow.set_tracking_uri(uri)
    return mlflow, client


def experiment_of(client: Any, uri: str, root: Path) -> str:
    """Returns the id of the experiment of all runs, made at need."""
    return _experiment(client, uri, root)


def _kind() -> str:
    asked = os.environ.get("NFM_TRACKER")
    if asked and asked not in KINDS:
        raise InputError(f"NFM_TRACKER is {asked!r}, expected one of {', '.join(KINDS)}")
    return asked or ("mlflow" if importlib.util.find_spec("mlflow") else "jsonl")


def _uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


def _mlflow() -> Any:
    """Imports mlflow: without usage reports, without git's command line, and without minutes of waiting."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
    try:
        import mlflow
        import mlflow.pyfunc
    except ImportError as error:
        raise InputError(
            f"NFM_TRACKER is mlflow, which does not import ({error}); install nfm[pipeline], or set NFM_TRACKER=jsonl"
        ) from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not a word per run and migration
    return mlflow


def _client(uri: str) -> Any:
    with _answering(uri):  # a database is opened here, and an address looked at
        return _mlflow().MlflowClient(tracking_uri=uri)


@contextmanager
def _answering(uri: str):
    """Turns a tracking server or a database that does not answer into a sentence."""
    mlflow = _mlflow()
    from sqlalchemy.exc import SQLAlchemyError  # which comes with mlflow

    try:
        yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(
            f"MLflow at {uri} does not answer ({_line(error)}); "
            "start it, correct MLFLOW_TRACKING_URI, or set NFM_TRACKER=jsonl"
        ) from error


def _experiment(client: Any, uri: str, root: Path) -> str:
    """Returns the experiment's id, made at need; a local database has its artifacts beside it."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        local = uri.startswith("sqlite:")
        location = (root.resolve() / "mlartifacts").as_uri() if local else None
        try:
            return client.create_experiment(EXPERIMENT, location, tags=ABOUT)
        except _mlflow().MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)  # another stage was faster
            if found is None:
                raise
    for key in ABOUT.keys() - found.tags.keys():
        client.set_experiment_tag(found.experiment_id, key, ABOUT[key])
    return found.experiment_id


def _now() -> int:
    """Returns milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
