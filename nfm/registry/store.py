"""A store of MLflow's, reached through its client: what the registry of models and the history of runs share."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from nfm.errors import InputError
from nfm.tracking import connect

ABSENT = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code


class Store:
    """What MLflow holds at a tracking URI. Every public method raises InputError where it does not answer.

    Arguments:
        uri: The tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def _connection(self) -> tuple[Any, Any]:
        return connect(self.uri)  # which makes a local database where there is none

    @property
    def _mlflow(self) -> Any:
        return self._connection[0]

    @property
    def _client(self) -> Any:
        return self._connection[1]

    def _is_absent(self) -> bool:
        """Whether it is a local database that nobody has made; asking would make it."""
        return self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).exists()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turns a store that does not answer into a sentence."""
        try:
            yield
        except (self._mlflow.MlflowException, OSError) as error:
            raise InputError(
                f"MLflow at {self.uri} does not answer as expected ({reason_of(error)}); start it, or correct "
                "MLFLOW_TRACKING_URI"
            ) from error


def reason_of(error: Exception) -> str:
    """Returns what an error says, on one line and not too long for a sentence."""
    return " ".join(str(error).split())[:300]
