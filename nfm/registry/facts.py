"""What a version keeps of itself for those that come after it: settings, distances, cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfm.artifacts import read_json
from nfm.cost import Rates, of_stages, of_students
from nfm.registry.client import CHAMPION, PREVIOUS, Registry, Version
from nfm.report.changes import Release
from nfm.tracker import flatten

TAG = "release"  # of a version: this as JSON, so that it is known where the folder that made it is not
ASIDE = ("run", "infra", "cost")  # sections that say how and where stages run


def facts_of(root: Path, params: Mapping[str, Any], item: str) -> dict[str, Any]:
    """Reads what a project's folder says of a student.

    Arguments:
        root: The project, its stages up to date.
        params: What its params.yaml holds.
        item: Coupling and seed, as in "teacher-0".

    Returns:
        "params", "fd", "yardstick" and "cost" as `Release` has them, empty where the folder does not say.
    """
    path = root / "metrics" / "evaluate" / f"{item}.json"
    measured = read_json(path) if path.is_file() else {}
    yardstick = measured.get("yardstick") or {}
    cost = _cost(root, params, item)
    if times := measured.get("seconds_per_image"):
        cost["seconds_per_image"] = {key: float(f"{seconds:.4g}") for key, seconds in times.items()}
    return {
        "params": flatten({key: value for key, value in params.items() if key not in ASIDE}),
        "fd": {key: round(value, 4) for key, value in measured.get(yardstick.get("fd", ""), {}).items()},
        "yardstick": yardstick,
        "cost": cost,
    }


def keep(registry: Registry, version: Version, facts: Mapping[str, Any]) -> None:
    """Keeps the facts of a version as a tag; a version that has some keeps those that it was published with."""
    if TAG not in version.tags:
        registry.tag(version, {TAG: json.dumps(facts)})


def release_of(version: Version) -> Release:
    """Returns what a version says of itself; of one of before it kept anything, the name and the commit."""
    try:
        facts = json.loads(version.tags.get(TAG, "{}"))
    except ValueError:
        facts = {}
    return Release(f"version {version.number}", version.tags.get("git.commit"), **facts)


def last_champion(registry: Registry, model: str, version: Version | None) -> Version | None:
    """Returns who was champion before a version, or is champion beside a run that publishes none; None if nobody."""
    by_alias = {alias: one for one in registry.versions(model) for alias in one.aliases}
    champion = by_alias.get(CHAMPION)
    if champion and version and champion.number == version.number:
        return by_alias.get(PREVIOUS)
    return champion


def _cost(root: Path, params: Mapping[str, Any], item: str) -> dict[str, Any]:
    """Returns the cost of one student, which is charged all of its teacher; empty where a stage left no record."""
    coupling, _, seed = item.rpartition("-")
    known = params.get("cost") or {}
    rates = Rates(known.get("cpu_hour"), known.get("gpu_hour") or {}, known.get("currency", ""))
    kind = params.get("coupling", {}).get(coupling, {}).get("kind", "")
    records = {path.stem: read_json(path) for path in sorted((root / "artifacts" / "runs").glob("*.json"))}
    return dict(of_students(of_stages(records, rates), {coupling: kind}, [int(seed)], rates).get(coupling, {}))
