"""JSON that is kept with the run of a version."""

from collections.abc import Mapping
from typing import Any

from nfm.errors import InputError
from nfm.registry.client import ABSENT, Registry, Version
from nfm.tracking import connect


def attach(registry: Registry, version: Version, path: str, content: Mapping[str, Any]) -> bool:
    """Keeps JSON as an artifact of the run that made a version.

    Arguments:
        registry: That holds the version.
        version: The version.
        path: Of the artifact.
        content: What JSON can hold.

    Returns:
        Whether it could: the run may be in another store, or not known.

    Raises:
        InputError: MLflow does not answer, or its store of artifacts does not.
    """
    if version.run_id is None:
        return False
    mlflow, client = connect(registry.uri)
    try:
        client.log_dict(version.run_id, dict(content), path)
    except (mlflow.MlflowException, OSError) as error:
        if getattr(error, "error_code", None) == ABSENT:
            return False
        raise InputError(
            f"MLflow at {registry.uri} did not take {path} for run {version.run_id} "
            f"({' '.join(str(error).split())[:300]}); start it, or correct MLFLOW_TRACKING_URI"
        ) from error
    return True
