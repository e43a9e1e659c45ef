"""The commands promote and rollback, over the registry of the project."""

from pathlib import Path

import torch

from nfm.artifacts import sha256
from nfm.config import Params
from nfm.errors import InputError
from nfm.promotion.decide import Desk, force, promote, rollback
from nfm.promotion.evidence import WORKSPACE, gather, of_tags, student_path
from nfm.promotion.judge import Candidate, Verdict, judge
from nfm.promotion.record import Entry
from nfm.registry.client import CHALLENGER, DIGEST, Registry, Version, open_registry


def open_desk(root: Path, model: str) -> Desk:
    """Returns where decisions on a model are taken: the registry of the project."""
    return Desk(open_registry(root), model, root)


def judge_versions(
    registry: Registry, challenger: Version, champion: Version | None, root: Path, params: Params, device: torch.device
) -> Verdict:
    """Judges two versions by the features and held-out images of the folder that made the challenger.

    Where that folder is not there any more, or is not known, those of the project's root are taken.

    Arguments:
        registry: That holds both.
        challenger: Who would become champion.
        champion: Who is, if anybody.
        root: The project's folder.
        params: Its params.
        device: Where to compute.
    """
    folder = root / challenger.tags.get(WORKSPACE, ".")
    folder = folder if (folder / "artifacts" / "reference").is_dir() else root

    def candidate(version: Version) -> Candidate:
        evidence = of_tags(version.tags) or _found(version, folder, params)
        return Candidate(f"version {version.number}", registry.weights(version), evidence)

    rival = candidate(champion) if champion else None
    return judge(candidate(challenger), rival, folder, params, device)


def promote_command(root: Path, params: Params, model: str, ref: str | None, forced: bool, reason: str | None) -> Entry:
    """Judges a version and makes it champion if it is better, or because it is wanted.

    Arguments:
        root: The project's folder.
        params: Its params.
        model: Name of the registered model.
        ref: The version's number or alias; None for the challenger.
        forced: Whether it becomes champion unjudged.
        reason: Why, then.

    Raises:
        InputError: A reason is missing or of no use, or there is no such version.
    """
    if forced != bool(reason and reason.strip()):
        raise InputError(
            "--force needs --reason TEXT, which is recorded"
            if forced
            else "--reason goes with --force: without it the numbers are the reason"
        )
    desk = open_desk(root, model)
    if forced:
        return force(desk, ref or CHALLENGER, str(reason))
    from nfm.stages.run import stage_device
    from nfm.train.launch import open_processes

    device, registry = stage_device(open_processes()), open_registry(root)
    return promote(desk, ref or CHALLENGER, lambda new, old: judge_versions(registry, new, old, root, params, device))


def rollback_command(root: Path, model: str, reason: str | None) -> Entry:
    """Makes the previous champion champion again."""
    return rollback(open_desk(root, model), reason or "rolled back by hand")


def _found(version: Version, folder: Path, params: Params) -> dict[str, object]:
    """Returns what a folder says of how a version was made, if it holds the version's own weights."""
    coupling, seed = version.tags.get("coupling", ""), version.tags.get("seed", "")
    if coupling not in params.coupling or not seed.isdecimal():
        return {}
    path = student_path(folder, coupling, int(seed))
    if not path.is_file() or sha256(path) != version.tags.get(DIGEST):
        return {}
    return gather(folder, params, coupling, int(seed))
