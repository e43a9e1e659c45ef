"""What MLflow is given when it loads a published model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfm.errors import InputError


def set_model(load: Callable[[Path], Any], predict: Callable[[Any, Any], Any]) -> None:
    """Hands MLflow a model; to be called from the file that MLflow runs to load it.

    Arguments:
        load: Gives the model that lies in a folder, as MLflow has logged it.
        predict: Answers a request, a data frame, with a data frame; what it refuses by an InputError is answered by
            HTTP status 400 and the sentence.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import set_model
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
    from mlflow.pyfunc.model import PythonModel

    class Published(PythonModel):
        _skip_type_hint_validation = True  # the signature checks inputs; else a warning at each load

        def load_context(self, context):
            self.model = load(Path(context.artifacts["weights"]).parents[1])

        def predict(self, context, model_input, params=None):  # pyright: ignore
            try:
                return predict(self.model, model_input)
            except InputError as error:
                raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error

    set_model(Published())
