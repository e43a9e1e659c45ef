"""A student by the name that a user gives: a published one, or a file of DVC's."""

from pathlib import Path

from nfm.artifacts import sha256
from nfm.errors import InputError
from nfm.registry.client import DIGEST, Version, open_registry
from nfm.serving.sampler import Sampler, open_sampler
from nfm.tracker import record_of

SCHEME = "models:/"
SHOWN = ("git.commit", "dvc.stage_hash", "data.hash", "coupling", "prefect.flow_run")  # tags that an image repeats


def find_sampler(model: str, root: Path) -> Sampler:
    """Reads the student that a name stands for.

    Arguments:
        model: "models:/nfm-digits@champion" or "models:/nfm-digits/1", or the path of a student's file.
        root: Folder of the project.

    Raises:
        InputError: There is none, or its file is missing, damaged or no student of images.
    """
    if not model.startswith(SCHEME):
        path = Path(model)
        sampler = open_sampler(path, {})
        return Sampler(sampler.student, _origin_of(path, root))
    registry = open_registry(root)
    version = registry.find(*_name_and_ref(model))
    return open_sampler(registry.weights(version), origin_of(version))


def origin_of(version: Version) -> dict[str, str]:
    """Returns what an image of a published student says of it."""
    origin = {"model": version.name, "version": str(version.number), DIGEST: version.tags[DIGEST]}
    if version.run_id:
        origin["run_id"] = version.run_id
    return origin | {key: version.tags[key] for key in SHOWN if key in version.tags}


def _origin_of(path: Path, root: Path) -> dict[str, str]:
    """Returns what is known of a student's file: the run that made it left its record beside the outputs."""
    origin = {DIGEST: sha256(path)}
    if path.resolve() == (root / "artifacts" / "student" / path.parent.name / path.name).resolve():
        record = record_of(root, f"student@{path.parent.name}")
        known = {"run_id": record.get("run_id"), "dvc.stage_hash": record.get("key"), "dvc.stage": record.get("stage")}
        origin |= {key: value for key, value in known.items() if value}
    return origin


def _name_and_ref(model: str) -> tuple[str, str]:
    name, at, ref = model.removeprefix(SCHEME).partition("@" if "@" in model else "/")
    if not (name and at and ref) or "/" in ref:
        raise InputError(f"--model is {model!r}, expected models:/NAME@ALIAS, models:/NAME/NUMBER or a student's file")
    return name, ref
