"""What MLflow holds of runs that have ended: found by id, name or tag, and read."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfm.errors import InputError
from nfm.registry.store import ABSENT, Store
from nfm.tracking import EXPERIMENT, YARDSTICK, tracking_uri

NEWEST = ["attributes.start_time DESC"]
PAGE = 1000


@dataclass(frozen=True)
class Run:
    """A run in MLflow: of a stage, or of a flow run over them.

    Attributes:
        id: Its id, 32 hexadecimal digits.
        name: Its name.
        status: FINISHED, FAILED, KILLED or RUNNING.
        start: When it began, milliseconds since 1970.
        tags: Its tags.
        metrics: The last value of each metric.
        inputs: Name and digest of each data set and coupling that it read.
    """

    id: str
    name: str
    status: str
    start: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    inputs: tuple[tuple[str, str], ...] = ()

    @property
    def stage(self) -> str | None:
        """Name of the stage without the item of a matrix; None of a flow run."""
        return self.tags.get("stage")

    @property
    def address(self) -> str | None:
        """The stage's name in dvc.yaml; None of a flow run."""
        return self.tags.get("dvc.stage") if self.stage else None

    @property
    def parent(self) -> str | None:
        """Id of the flow run's run; None of a stage run by hand."""
        return self.tags.get("mlflow.parentRunId")

    @property
    def made_by(self) -> dict[str, str]:
        """Of a flow run: the runs that made each stage's outputs, by the stage's name in dvc.yaml."""
        found = {key.removeprefix("made_by."): v for key, v in self.tags.items() if key.startswith("made_by.")}
        return {key.replace("/", "@", 1): run_id for key, run_id in found.items()}


def open_history(root: Path) -> "History":
    """Returns the history of a project: at MLFLOW_TRACKING_URI, or else in <root>/mlflow.db.

    Raises:
        InputError: MLflow is not installed.
    """
    return History(tracking_uri(root))


class History(Store):
    """The runs at a tracking URI."""

    def find(self, word: str) -> Run | None:
        """Returns the run of an id, or of at least six of its first digits, else the newest of a name.

        Raises:
            InputError: The run is none of nfm's.
        """
        if self._is_absent():
            return None
        with self._asked():
            found = self._by_id(word) or self._newest(f"attributes.run_name = '{_quoted(word)}'")
            if found is None:
                return None
        run = _run(found)
        if run.stage is None and "recipe" not in run.tags:
            raise InputError(
                f"run {run.id} ({run.name}) at {self.uri} was made by another project: it has none of the tags of a "
                "stage or of a flow run of nfm's"
            )
        return run

    def newest_flow_run(self, experiment: str) -> Run | None:
        """Returns the newest flow run of an experiment that has come to its report; None without such an experiment.

        Raises:
            InputError: The experiment holds none.
        """
        if self._is_absent():
            return None
        with self._asked():
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                return None
            runs = self._client.search_runs(
                [found.experiment_id], "tags.`prefect.flow_run_id` != ''", order_by=NEWEST, max_results=PAGE
            )
        for run in map(_run, runs):
            if "report" in run.made_by and run.status == "FINISHED":
                return run
        raise InputError(f"experiment {experiment!r} at {self.uri} holds no flow run that has come to its report")

    def tagged(self, **tags: str) -> list[Run]:
        """Returns the runs of this experiment with some tags, newest first; of a key, "__" stands for a dot."""
        if self._is_absent():
            return []
        parts = [f"tags.`{key.replace('__', '.')}` = '{_quoted(value)}'" for key, value in tags.items()]
        with self._asked():
            found = self._client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                return []
            ids = [found.experiment_id]
            return [
                _run(run)
                for run in self._client.search_runs(ids, " and ".join(parts), order_by=NEWEST, max_results=PAGE)
            ]

    def get(self, run_id: str) -> Run | None:
        """Returns the run of an id."""
        if self._is_absent():
            return None
        with self._asked():
            found = self._by_id(run_id)
            return None if found is None else _run(found)

    def made_by(self, run: Run, stage: str) -> Run | None:
        """Returns the run that made the outputs of a stage, as a flow run's tags name it."""
        run_id = run.made_by.get(stage)
        return None if run_id is None else self.get(run_id)

    def curve(self, run: Run, metric: str) -> dict[int, float]:
        """Returns a metric by step."""
        with self._asked():
            return {m.step: m.value for m in self._client.get_metric_history(run.id, metric)}

    def yardstick(self, run: Run) -> dict[str, Any]:
        """Returns what an evaluation was measured with; empty where the run does not say."""
        found = run.tags.get(YARDSTICK)
        return json.loads(found) if found else {}

    def has(self, run: Run, name: str) -> bool:
        """Whether a run has an artifact of a name."""
        with self._asked():
            folder = str(Path(name).parent)
            listed = self._client.list_artifacts(run.id, None if folder == "." else folder)
            return name in [file.path for file in listed]

    def text(self, run: Run, name: str) -> str:
        """Returns an artifact that is text.

        Raises:
            InputError: The run has none of that name.
        """
        if not self.has(run, name):
            raise InputError(
                f"run {run.id} ({run.name}) at {self.uri} has no artifact {name}; it was removed, or never made"
            )
        with self._asked(), tempfile.TemporaryDirectory() as folder:
            return Path(self._client.download_artifacts(run.id, name, folder)).read_text(encoding="utf-8")

    def versions(self, run: Run) -> list[str]:
        """Returns published versions of a run's student, such as "nfm-digits version 3 (champion)"."""
        with self._asked():
            found = {
                (version.name, int(version.version))
                for key in ("run_id", "tags.`run_id`")  # a tag where the student came from another store
                for version in self._client.search_model_versions(f"{key} = '{run.id}'")
            }
            aliases = {name: self._client.get_registered_model(name).aliases for name in {name for name, _ in found}}
        lines = []
        for name, number in sorted(found):
            called = sorted(alias for alias, of in aliases[name].items() if int(of) == number)
            lines.append(f"{name} version {number}" + (f" ({', '.join(called)})" if called else ""))
        return lines

    def _by_id(self, word: str) -> Any:
        if re.fullmatch("[0-9a-f]{32}", word):
            try:
                return self._client.get_run(word)
            except self._mlflow.MlflowException as error:
                if error.error_code != ABSENT:
                    raise
                return None
        if not re.fullmatch("[0-9a-f]{6,31}", word):
            return None
        experiments = [found.experiment_id for found in self._client.search_experiments()]
        runs = self._client.search_runs(experiments, order_by=NEWEST, max_results=50 * PAGE)
        return next((run for run in runs if run.info.run_id.startswith(word)), None)

    def _newest(self, condition: str) -> Any:
        experiments = [found.experiment_id for found in self._client.search_experiments()]
        return next(iter(self._client.search_runs(experiments, condition, order_by=NEWEST, max_results=1)), None)


def _run(found: Any) -> Run:
    info, data = found.info, found.data
    datasets = found.inputs.dataset_inputs if found.inputs else ()
    inputs = tuple((one.dataset.name, one.dataset.digest) for one in datasets)
    return Run(
        info.run_id, info.run_name or "", info.status, info.start_time, dict(data.tags), dict(data.metrics), inputs
    )


def _quoted(text: str) -> str:
    # MLflow's filters know no escape of a quote in a string.
    return text.replace("'", "")
