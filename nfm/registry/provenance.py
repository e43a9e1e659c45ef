"""What a version says of where it is from, read off the outputs of its stage and off MLflow's runs."""

from pathlib import Path

from nfm.artifacts import read_json, sha256
from nfm.registry.client import Registry
from nfm.tracker import record_of

KEPT = ("git.commit", "recipe")  # tags of the run that are the version's too
FLOW_RUN = "prefect.flow_run_id"  # tag of a flow run's own run in MLflow


def tags_of(registry: Registry, root: Path, item: str) -> dict[str, str]:
    """Returns the tags of a student's version; those that are not known are left out.

    Arguments:
        registry: Holds the runs.
        root: Folder with the outputs of the stages.
        item: Coupling and seed, as in "teacher-0".
    """
    stage, (coupling, _, seed) = f"student@{item}", item.rpartition("-")
    record, manifest = record_of(root, stage), root / "artifacts" / "data" / "train" / "manifest.json"
    run = registry.run_tags(record.get("run_id"))
    flow = registry.run_tags(run.get("mlflow.parentRunId"))
    tags = {"dvc.stage": stage, "coupling": coupling, "seed": seed}
    known = {
        "dvc.stage_hash": record.get("key"),
        "data.hash": sha256(manifest) if manifest.is_file() else None,
        "prefect.flow_run": flow.get(FLOW_RUN),
        **{key: run.get(key) for key in KEPT},
    }
    return tags | {key: value for key, value in known.items() if value}


def description(root: Path, item: str, data: str) -> str:
    """Returns a sentence on a student, with its measures by solver and NFE where they are there."""
    coupling, _, seed = item.rpartition("-")
    text = f"Student of the coupling {coupling}, seed {seed}, on {data}."
    path = root / "metrics" / "evaluate" / f"{item}.json"
    if not path.is_file():
        return text
    metrics = read_json(path)
    name = metrics.get("yardstick", {}).get("fd")
    figures = [f"{value:.2f} ({setting})" for setting, value in metrics.get(name, {}).items()]
    return f"{text} {name}: {', '.join(figures)}." if figures else text
