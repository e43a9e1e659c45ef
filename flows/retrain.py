"""New data in, a challenger out, and a decision whether it becomes champion."""

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import get_run_context
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.identity import check_deployed
from flows.parameters import Overrides, Recipe, overrides_of
from flows.pipeline import REFUSED, SET, pipeline
from flows.seen import Seen, digest_of, last_seen, leave_mark, update_imports
from flows.spent import note, remove_spent
from flows.workspace import params_of, place_of
from flows.zombies import sweep
from nfm.config import Params, parse_params
from nfm.errors import InputError
from nfm.promotion.evidence import TAG, WORKSPACE, gather, standing, student_path
from nfm.promotion.watch import list_data, watched
from nfm.tracker import record_of

# torch, mlflow and what needs them are imported where they are used: a retraining that finds nothing new uses neither.
NOTHING = "No new data"
DRIFTED = "Drifted"
NAMES = {"promoted": "Promoted", "refused": "Not promoted", "first": "First champion", "unchanged": "Unchanged"}


@flow(name="nfm-retrain")
def retrain(recipe: Recipe | None = None, overrides: Overrides | None = None, push: bool = False) -> State[None]:
    """Retrains where data have changed since the last retraining, and promotes what is better than the champion.

    Arguments:
        recipe: Name of a recipe to retrain by instead of params.yaml.
        overrides: Params by dotted key, such as {"student.train.steps": 100}.
        push: Whether to send the outputs of each stage to the DVC remote, for other machines or
            where this one's disk does not last.
    """
    root = Path.cwd()
    try:
        check_deployed(root)
        sweep()
        return _retrain(root, recipe, dict(overrides or {}), push)
    except InputError as error:
        return Failed(name=REFUSED, message=str(error))


def _retrain(root: Path, recipe: str | None, overrides: dict[str, Any], push: bool) -> State[None]:
    mapping = params_of(root, recipe, overrides)
    params = parse_params(mapping, recipe or "params.yaml")
    standing(params)
    seen, overrides = _look(root, params, mapping, overrides)
    last = last_seen(root)
    if last and seen.same(last):
        return Completed(name=NOTHING, message=f"No new data since {last.time} ({last.decision})")
    folder = place_of(root, params_of(root, recipe, overrides)) if recipe or overrides else root
    if folder != root:
        note(folder)
    bring: Any = pipeline
    run, drift = partial(bring, recipe, overrides or None, push=push, return_state=True), None
    if old := _before(root, last):
        state = run(["prepare"])
        if not state.is_completed():
            return Failed(message=state.message)
        drift = _report_drift(old, folder, params)
        if stopped := _too_far(drift, params.promote.drift):
            _tidy(root, params, last.folder if last else ".")
            return stopped
    state = run()
    if not state.is_completed():
        return Failed(message=state.message)
    action, reason = _decide(root, folder, params, seen, drift)
    time, kept = datetime.now(UTC).isoformat(timespec="seconds"), folder.relative_to(root).as_posix()
    leave_mark(root, replace(seen, folder=kept, time=time, decision=reason))
    _tidy(root, params, kept)
    return Completed(name=NAMES.get(action, action), message=reason)


def _look(
    root: Path, params: Params, mapping: Mapping[str, Any], overrides: dict[str, Any]
) -> tuple[Seen, dict[str, Any]]:
    """Brings imported data up to date and lists what is there; the overrides then name its version."""
    found = watched(params.data)
    if found is None:
        return Seen(f"{params.data.kind}, as published", digest_of(mapping), "."), overrides
    key, places = found
    for file in update_imports(root, places):
        get_run_logger().info(f"{file} is up to date with its source")
    listing = list_data(places, root)
    get_run_logger().info(f"{listing.count:,} files, {listing.bytes:,} bytes, digest {listing.digest[:16]}")
    return Seen(listing.digest, digest_of(mapping), "."), {**overrides, key: listing.digest[:16]}


def _before(root: Path, last: Seen | None) -> Path | None:
    """Returns a folder with the features and the reference of the data before, if there is one."""
    for folder in (root / last.folder if last else root, root):
        if (folder / "artifacts" / "reference" / "train.safetensors").is_file():
            return folder
    return None


def _report_drift(old: Path, folder: Path, params: Params) -> dict[str, Any] | None:
    """Measures the new images by the old features, and shows that in Prefect's UI.

    Returns:
        None where the new images have another shape, so that the old features cannot see them.
    """
    from nfm.promotion.drift import measure_drift
    from nfm.stages.run import stage_device
    from nfm.train.launch import open_processes

    drift, logger = measure_drift(old, folder, params, stage_device(open_processes())), get_run_logger()
    if drift is None:
        logger.warning("the new images have another shape than the old ones: how far they have drifted is not known")
        return None
    create_table_artifact(key="drift", table=drift.table, description="New data against old, by the old features")
    text = f"```json\n{json.dumps(drift.content, indent=2)}\n```"
    create_markdown_artifact(key="drift-json", markdown=text, description="The same with all numbers")
    logger.info(
        f"FD to the old training images: {drift.fd:.3g} of the new ones, {drift.floor:.3g} of old held-out ones"
    )
    return drift.content


def _too_far(drift: Mapping[str, Any] | None, limit: float | None) -> State[None] | None:
    """Returns the state of a retraining that drift stops."""
    if drift is None or limit is None or drift["fd"] <= limit:
        return None
    return Failed(
        name=DRIFTED,
        message=f"FD of the new training images to the old ones is {drift['fd']:.3g}, above promote.drift = {limit:g} "
        f"(old held-out images have {drift['floor']:.3g}); nothing was trained: mend the data, or raise promote.drift",
    )


def _decide(root: Path, folder: Path, params: Params, seen: Seen, drift: Mapping[str, Any] | None) -> tuple[str, str]:
    """Publishes the student that stands for the run and judges it; returns what was decided, and why."""
    from nfm.promotion.command import judge_versions, open_desk
    from nfm.promotion.decide import promote
    from nfm.promotion.record import only_one
    from nfm.registry.client import CHALLENGER, CHAMPION, model_name, open_registry
    from nfm.registry.facts import facts_of, keep
    from nfm.registry.provenance import description, tags_of
    from nfm.stages.run import stage_device
    from nfm.train.launch import open_processes

    coupling, seed = standing(params)
    item, name, registry = f"{coupling}-{seed}", model_name(params.data.kind), open_registry(root)
    own = {
        WORKSPACE: folder.relative_to(root).as_posix(),
        "data.listing": seen.data,
        TAG: json.dumps(gather(folder, params, coupling, seed)),
    }
    with only_one(root):  # or another retraining may make it champion before it is called challenger
        version = registry.publish(
            student_path(folder, coupling, seed),
            name,
            run_id=record_of(folder, f"student@{item}").get("run_id"),
            tags={**_flow_run(), **tags_of(registry, folder, item), **own},
            description=description(folder, item, params.data.kind),
        )
        registry.tag(version, own)  # also of one that was published before
        keep(registry, version, facts_of(folder, params.model_dump(mode="json"), item))
        if CHAMPION not in version.aliases:
            registry.move(name, {CHALLENGER: version.number})
    if drift is not None:
        registry.attach(version, "drift.json", drift)
    device = stage_device(open_processes())
    entry = promote(
        open_desk(root, name),
        str(version.number),
        lambda new, old: judge_versions(registry, new, old, root, params, device),
    )
    text = json.dumps(entry.content, indent=2)
    create_markdown_artifact(key="promotion", markdown=f"{entry.reason}\n\n```json\n{text}\n```", description=name)
    return entry.action, f"{name}: {entry.reason}"


def _flow_run() -> dict[str, str]:
    """Returns the tag that names this flow run."""
    run = getattr(get_run_context(), "flow_run", None)
    return {} if run is None else {"prefect.flow_run": str(run.id)}


def _tidy(root: Path, params: Params, kept: str) -> None:
    """Removes the workspaces of retrainings but one, and those of versions that have an alias."""
    from nfm.registry.client import model_name, open_registry

    try:
        versions = open_registry(root).versions(model_name(params.data.kind))
        used = {kept, *(version.tags.get(WORKSPACE, ".") for version in versions if version.aliases)}
        remove_spent(root, used)
    except InputError as error:  # what was decided stands
        get_run_logger().warning(f"old workspaces stay: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Retrains from the command line.

    Returns:
        0 when a decision was taken or nothing is new, 1 when a stage failed or the data have drifted, 2 on bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=__doc__)
    parser.add_argument("--recipe", help="retrain by a recipe instead of params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=SET)
    parser.add_argument("--push", action="store_true", help="send the outputs of each stage to the DVC remote")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        overrides = overrides_of(given.overrides)
        params_of(Path.cwd(), given.recipe, overrides)  # before a server is started
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        return 2
    run: Any = retrain
    state = run(given.recipe, overrides or None, given.push, return_state=True)
    if state.is_completed():
        print(f"\n{state.name}: {state.message}")
        return 0
    print(f"nfm: {state.message}", file=sys.stderr)
    return 2 if state.name == REFUSED else 1


if __name__ == "__main__":
    sys.exit(main())
