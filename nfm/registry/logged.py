"""A student as a model that MLflow logs: weights, where they are from, the code that samples with them; no pickle."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from nfm.artifacts import load_tensors, sha256, write_json
from nfm.errors import InputError
from nfm.tracking import experiment_of

NAME = "student"
WEIGHTS = "artifacts/student.safetensors"  # in the folder of a logged model
DIGEST = "weights.sha256"  # tag of a logged model, and of a version
PACKAGES = ("numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "torch")


def makes_images(student: Path) -> bool:
    """Whether a student makes pixels, in grey or in colour, and not latents.

    Raises:
        InputError: The file is missing, damaged or no student.
    """
    header = load_tensors(student)[1]
    if "model" not in header or not str(header.get("format", "")).startswith("nfm-student"):
        raise InputError(f"{student} is no student; give artifacts/student/<coupling>-<seed>/student.safetensors")
    return header["model"]["shape"][0] in (1, 3)


def log_student(
    mlflow: Any, client: Any, student: Path, *, uri: str, root: Path, run_id: str | None, tags: Mapping[str, str]
) -> str:
    """Logs a student as a model of a run, or of none; returns the model's id.

    Arguments:
        mlflow: The package.
        client: MLflow's client.
        student: The student's safetensors file.
        uri: The tracking URI.
        root: Folder of the project, for the artifacts of a local database.
        run_id: The run that trained it, if this store holds it.
        tags: Where the student is from; each image that it makes says so.

    Raises:
        InputError: The file is no student, or one that makes latents.
    """
    if not makes_images(student):
        raise InputError(f"{student} makes latents, and only students that make images can be published")
    tags = {**tags, DIGEST: sha256(student)} | ({"run_id": run_id} if run_id else {})
    experiment = experiment_of(client, uri, root)
    model = client.create_logged_model(experiment, NAME, source_run_id=run_id, tags=tags, model_type="image generator")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on type hints and input examples
        files = _files(Path(folder), student, tags)
        mlflow.models.Model.log(
            None,
            mlflow.pyfunc,
            name=NAME,
            run_id=run_id,
            model_id=model.model_id,
            # Run by MLflow when the model is loaded: no code of ours is pickled.
            python_model=str(Path(__file__).parents[1] / "serving" / "entry.py"),
            artifacts={name: str(path) for name, path in files.items()},
            code_paths=[str(_code(Path(folder)))],
            signature=_signature(),
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
            metadata={"nfm": version("nfm"), **tags},
        )
    return model.model_id


def find_logged(client: Any, run_id: str | None, digest: str) -> str | None:
    """Returns the id of the model that a run has logged with these weights; None if there is none."""
    outputs = client.get_run(run_id).outputs if run_id else None
    for output in outputs.model_outputs if outputs else []:
        model = client.get_logged_model(output.model_id)
        if model.tags.get(DIGEST) == digest and str(model.status) == "READY":
            return model.model_id
    return None


def _files(folder: Path, student: Path, tags: Mapping[str, str]) -> dict[str, Path]:
    """Returns the files of a model by name, under the names that they keep there."""
    weights, origin = folder / "student.safetensors", folder / "origin.json"
    shutil.copyfile(student, weights)
    write_json(origin, dict(tags))
    return {"weights": weights, "origin": origin}


def _code(folder: Path) -> Path:
    """Packs this package's code into one file, since a server takes its time for each; returns it."""
    source, packed = Path(__file__).parents[1], folder / "nfm.zip"
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*.py")):
            archive.write(path, path.relative_to(source.parent))
    return packed


def _signature() -> Any:
    """Returns the columns that a published model takes and gives.

    Numbers of any type: given a type, MLflow would cut 2.7 to 2 where an integer is wanted, and refuse a label that is
    null. The model checks them itself, see `nfm.serving.answer`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(AnyType(), "label", required=False),
        ColSpec(AnyType(), "seed"),
        ColSpec(AnyType(), "nfe"),
        ColSpec(DataType.string, "solver"),
        ColSpec(AnyType(), "guidance"),
    ]
    return ModelSignature(Schema(inputs), Schema([ColSpec(DataType.string, "image")]))
