"""The student that stands for a run, published as a version of the data set's model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import State
from prefect.logging import get_run_logger

from nfm.config import read_mapping
from nfm.errors import InputError
from nfm.tracker import record_of
from nfm.tracking import is_mlflow

if TYPE_CHECKING:
    from nfm.registry.client import Version


def release(folder: Path, home: Path, states: Mapping[str, State[Any]]) -> "Version | None":
    """Publishes a run's student in MLflow and returns its version; what keeps it from that is a warning, fails no run.

    Nothing happens where all stages were up to date (importing MLflow would double what such a run costs), where the
    report or the student was not asked for or failed, where the data are latents, or where MLflow is not the tracker.

    Arguments:
        folder: Where the stages have run.
        home: The folder whose registry it is, where MLFLOW_TRACKING_URI is not set.
        states: How every stage ended.
    """
    logger, params = get_run_logger(), read_mapping(folder / "params.yaml")
    item = chosen(params)
    wanted = ("report", f"student@{item}")
    if not all(stage in states and states[stage].is_completed() for stage in wanted):
        return None
    if all(state.name == "Cached" for state in states.values()) or params["data"]["kind"] == "latents":
        return None
    try:
        if is_mlflow():
            version = published(folder, home, params, item)
            named = f", {', '.join(version.aliases)}" if version.aliases else ""
            logger.info(f"student {item} is {version.name} version {version.number}{named} in MLflow's registry")
            return version
    except InputError as error:
        logger.warning(f"the student {item} was not published: {error}")
    return None


def chosen(params: Mapping[str, Any]) -> str:
    """Returns coupling and seed of the student that stands for a run, as in "teacher-0".

    Those that `promote` names, where they are trained; else the teacher's coupling or the first, and the lowest seed.
    """
    couplings, seeds, promote = params["couplings"], params["seeds"], params.get("promote", {})
    asked = [name for name in (promote.get("coupling"), "teacher") if name in couplings]
    seed = promote["seed"] if promote.get("seed") in seeds else min(seeds)
    return f"{(asked or couplings)[0]}-{seed}"


def published(folder: Path, home: Path, params: Mapping[str, Any], item: str) -> "Version":
    """Publishes the student of an item; returns its version.

    Raises:
        InputError: The registry does not answer.
    """
    from nfm.registry.client import model_name, open_registry
    from nfm.registry.facts import facts_of, keep
    from nfm.registry.provenance import description, tags_of

    kind, run_id = params["data"]["kind"], record_of(folder, f"student@{item}").get("run_id")
    registry = open_registry(home)
    version = registry.publish(
        folder / "artifacts" / "student" / item / "student.safetensors",
        model_name(kind),
        run_id=run_id,
        tags=tags_of(registry, folder, item),
        description=description(folder, item, kind),
    )
    keep(registry, version, facts_of(folder, params, item))
    return version
