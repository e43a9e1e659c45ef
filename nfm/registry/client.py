"""Versions of published models in MLflow's registry: published, found, tagged, given aliases, fetched."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfm.artifacts import atomic_path, sha256
from nfm.errors import InputError
from nfm.registry.logged import DIGEST, WEIGHTS, find_logged, log_student
from nfm.registry.store import ABSENT, Store, reason_of
from nfm.tracking import tracking_uri

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ABOUT = (
    "Students that make images, by `python -m nfm sample` or `mlflow models serve`. The alias champion is on the "
    "version in use. In: columns label (optional), seed, nfe, solver, guidance. Out: a PNG in base64."
)
WAY_OUT = "`python -m nfm trace models:/NAME/NUMBER` names the run that made them, `restore` brings that back from DVC"
RUN = "run_id"  # tag of a version: the run that made the student, also where another store holds it


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: The model's name, such as "nfm-digits".
        number: Counted from 1.
        run_id: The MLflow run that trained the student; None where it is not known.
        tags: The version's tags.
        aliases: Such as "champion".
    """

    name: str
    number: int
    run_id: str | None
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """The address that MLflow knows it by."""
        return f"models:/{self.name}/{self.number}"


def model_name(data_kind: str) -> str:
    """Returns the name under which the students of a kind of data set are published."""
    return f"nfm-{data_kind}"


def open_registry(root: Path) -> "Registry":
    """Returns the registry of a project: at MLFLOW_TRACKING_URI, or else in <root>/mlflow.db.

    Raises:
        InputError: MLflow is not installed.
    """
    return Registry(tracking_uri(root), root)


class Registry(Store):
    """The registry at a tracking URI.

    Arguments:
        uri: The tracking URI.
        root: Folder of the project: for the artifacts of a local database, and for fetched files.
    """

    def __init__(self, uri: str, root: Path) -> None:
        super().__init__(uri)
        self._root = root

    def publish(
        self, student: Path, name: str, *, run_id: str | None, tags: Mapping[str, str], description: str
    ) -> Version:
        """Makes a student a version of a model; the first version of a name gets the alias champion.

        A student whose weights are published already stays the version that it is. Nor do two processes that publish it
        at the same moment, each without seeing the other's, leave two versions: see `_settle`.

        Arguments:
            student: Its safetensors file.
            name: The model's name, made at need.
            run_id: The MLflow run that trained it, if known; its logged model becomes the version.
            tags: Of the version; the weights' SHA-256 and the run are added.
            description: What the UI shows.

        Raises:
            InputError: The file is no student, or one of something else than images.
        """
        digest = sha256(student)
        with self._asked():
            self._make(name)
            version = self._published(name, digest)
            if version is None:
                made, own = self._create(student, name, run_id, {**tags, DIGEST: digest}, description)
                version = self._settle(made, own)
            # Also where a kill came between the first version and its alias.
            if version.number == 1 and not self._client.get_registered_model(name).aliases:
                self._client.set_registered_model_alias(name, CHAMPION, "1")
            return self._version(name, version.number)

    def find(self, name: str, ref: str) -> Version:
        """Returns the version that an alias, or a number, names.

        Raises:
            InputError: There is none.
        """
        found = self.versions(name)
        if not found:
            raise InputError(f"there is no model {name!r} in {self.uri}; {self._what_there_is()}")
        for version in found:
            if ref in version.aliases or ref == str(version.number):
                return version
        known = [str(version.number) for version in found] + [alias for version in found for alias in version.aliases]
        raise InputError(f"{name} has no version or alias {ref!r}; there are {', '.join(known)}")

    def versions(self, name: str) -> list[Version]:
        """Returns all versions of a model by number, none if there is no such model."""
        if self._is_absent():
            return []
        with self._asked():
            return self._versions(name)

    def move(self, name: str, aliases: Mapping[str, int | None]) -> None:
        """Gives aliases to versions; None takes an alias away. The champion moves last.

        MLflow has no transactions: a kill on the way leaves some aliases moved, never two champions.

        Raises:
            InputError: There is no such version; then no alias has moved.
        """
        for number in aliases.values():
            if number is not None:
                self.find(name, str(number))
        with self._asked():
            for alias, number in sorted(aliases.items(), key=lambda item: item[0] == CHAMPION):
                if number is None:
                    self._client.delete_registered_model_alias(name, alias)
                else:
                    self._client.set_registered_model_alias(name, alias, str(number))

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Adds tags to a version, or replaces them."""
        with self._asked():
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.number), key, str(value))

    def attach(self, version: Version, path: str, content: Mapping[str, Any]) -> bool:
        """Keeps JSON as an artifact of the run that made a version.

        Returns:
            Whether it could: the run may be in another store, or not known.
        """
        with self._asked():
            known = self._known(version.run_id)
            if known is not None:
                self._client.log_dict(known, dict(content), path)
        return known is not None

    def run_tags(self, run_id: str | None) -> dict[str, str]:
        """Returns the tags of a run, none where this store does not hold it."""
        with self._asked():
            known = self._known(run_id)
            return dict(self._client.get_run(known).data.tags) if known else {}

    def weights(self, version: Version) -> Path:
        """Returns a local path of a version's student, fetched once and held against its SHA-256.

        Raises:
            InputError: The file is gone from the registry's store, or damaged.
        """
        wanted = version.tags.get(DIGEST, "")
        kept = self._root / ".cache" / "models" / f"{wanted}.safetensors"
        if wanted and kept.is_file() and sha256(kept) == wanted:
            return kept
        with tempfile.TemporaryDirectory() as folder:
            found = self._download(version, folder)
            if sha256(found) != wanted:
                raise InputError(
                    f"the weights of {version.name} version {version.number} have not the SHA-256 of its tag {DIGEST}: "
                    f"they are damaged in MLflow's store; {WAY_OUT}"
                )
            with atomic_path(kept) as temporary:
                shutil.copyfile(found, temporary)
        return kept

    def _download(self, version: Version, folder: str) -> Path:
        """Fetches a version's weights into a folder."""
        uri = f"{version.uri}/{WEIGHTS}"
        try:
            return Path(self._mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (self._mlflow.MlflowException, OSError) as error:
            raise InputError(
                f"the weights of {version.name} version {version.number} cannot be fetched from MLflow at {self.uri} "
                f"({reason_of(error)}); {WAY_OUT}"
            ) from error

    def _make(self, name: str) -> None:
        try:
            self._client.get_registered_model(name)
        except self._mlflow.MlflowException as error:
            if error.error_code != ABSENT:
                raise
            try:
                self._client.create_registered_model(name, description=ABOUT)
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                    raise

    def _published(self, name: str, digest: str) -> Version | None:
        """Returns the version with some weights, the first if there are several."""
        return next((version for version in self._versions(name) if version.tags.get(DIGEST) == digest), None)

    def _create(
        self, student: Path, name: str, run_id: str | None, tags: dict[str, str], description: str
    ) -> tuple[Version, str | None]:
        """Makes a version of the model that the run has logged; logs it first where it has not.

        Returns:
            The version, and the id of the model that was logged for it, if any.
        """
        run_id, named = self._known(run_id), run_id
        found = model = find_logged(self._client, run_id, tags[DIGEST])
        if model is None:
            model = log_student(
                self._mlflow, self._client, student, uri=self.uri, root=self._root, run_id=run_id, tags=tags
            )
        if named:
            tags = {**tags, RUN: named}
        made = self._client.create_model_version(
            name, f"models:/{model}", run_id, tags=tags, description=description, model_id=model
        )
        return self._version(name, int(made.version)), None if found else model

    def _settle(self, made: Version, model: str | None) -> Version:
        """Returns the version that keeps the weights of one just made: itself, or one that was made a moment before.

        MLflow has no transactions and no unique tags, but it counts versions up, and a version is there before the next
        number is given out. So of two processes that have not seen each other's the one with the higher number finds
        the lower, and takes its own back; the one with the lower number finds that it is the first.
        """
        first = self._published(made.name, made.tags[DIGEST])
        if first is None or first.number == made.number:
            return made
        self._client.delete_model_version(made.name, str(made.number))
        if model is not None:
            self._client.delete_logged_model(model)
        return first

    def _known(self, run_id: str | None) -> str | None:
        """Returns the run's id if this store holds it: a student may come from another one by DVC."""
        if run_id is None:
            return None
        try:
            return self._client.get_run(run_id).info.run_id
        except self._mlflow.MlflowException as error:
            if error.error_code not in (ABSENT, "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def _versions(self, name: str) -> list[Version]:
        try:
            aliases = self._client.get_registered_model(name).aliases
        except self._mlflow.MlflowException as error:
            if error.error_code != ABSENT:
                raise
            return []
        found = self._client.search_model_versions(f"name = '{name}'", max_results=1000)
        return sorted((_version(version, aliases) for version in found), key=lambda version: version.number)

    def _version(self, name: str, number: int) -> Version:
        return next(version for version in self._versions(name) if version.number == number)

    def _what_there_is(self) -> str:
        if self._is_absent():
            return "nothing has been published there, `make demo` does so"
        with self._asked():
            names = sorted(model.name for model in self._client.search_registered_models(max_results=100))
        return f"there are {', '.join(names)}" if names else "nothing has been published there, `make demo` does so"


def _version(found: Any, aliases: Mapping[str, str]) -> Version:
    number = int(found.version)
    return Version(
        name=found.name,
        number=number,
        run_id=found.run_id or found.tags.get(RUN),
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, of in aliases.items() if int(of) == number)),
    )
