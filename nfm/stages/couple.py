"""couple: what one coupling needs before a student can train on its pairs."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nfm.build.coupling import prepare_coupling
from nfm.build.data import open_training_images
from nfm.build.draws import Draws, open_draws, thresholds
from nfm.config import (
    CouplingSection,
    Gate,
    InverseRegressionCoupling,
    Params,
    SemidiscreteOTCoupling,
    TeacherCoupling,
)
from nfm.coupling.card import figures_of
from nfm.coupling.gate import HELP, judge
from nfm.errors import InputError
from nfm.stages.run import StageRun, checkpoint_folder, stage_device, stage_key, stage_run
from nfm.train.launch import open_processes


def couple(root: Path, params: Params, coupling: str, seed: int) -> None:
    """Writes artifacts/coupling/<coupling>-<seed>/ and the coupling's figures.

    The teacher's coupling has a card and a gate. What is encoded stays in the checkpoint's folder until
    the stage has ended well, so that a killed stage, and one that the gate has failed, encode nothing
    twice; processes share the work.

    Raises:
        InputError: The card is outside the gate, among others.
    """
    section, item = params.coupling[coupling], f"{coupling}-{seed}"
    split = open_training_images(root, params)
    address, reads = _reads(root, section, coupling, seed)
    with stage_run(address, root, params, **reads, tags={"seed": seed, "coupling": coupling}) as run:
        draws, figures = None, {}
        if isinstance(section, TeacherCoupling):
            draws = open_draws(section, run.checkpoint, split, _teacher(root, seed), seed=seed, device=run.device)
            draws.encode(params.run.sample_batch, open_processes(), run.report)
            figures = _judged(run, draws, section.gate, f"coupling.{coupling}.gate") if run.main else {}
        if run.main:
            folder = root / "artifacts" / "coupling" / item
            figures |= prepare_coupling(section, folder, split, draws=draws, seed=seed, device=run.device)
            run.write_metrics(f"couple/{item}", figures)
            run.report({k: v for k, v in figures.items() if isinstance(v, float)}, 0)
            if isinstance(section, SemidiscreteOTCoupling):
                run.tracker.artifact(folder / "card.json", "card.json")


def encode_share(root: Path, params: Params, coupling: str, seed: int, index: int, count: int) -> None:
    """Encodes a share of the shards of a teacher's coupling, where `couple` finds them and goes on.

    Arguments:
        root: The project's folder.
        params: All params.
        coupling: Name of the coupling.
        seed: Whose teacher.
        index: Which share, from 0.
        count: Of how many.

    Raises:
        InputError: The coupling is of another kind, among others.
    """
    section = params.coupling[coupling]
    if not isinstance(section, TeacherCoupling):
        raise InputError(f"--share goes with a coupling of the kind 'teacher', {coupling!r} is {section.kind!r}")
    split = open_training_images(root, params)
    address, reads = _reads(root, section, coupling, seed)
    work = checkpoint_folder(root, address, stage_key(address, root, **reads))
    device = stage_device(open_processes())
    draws = open_draws(section, work, split, _teacher(root, seed), seed=seed, device=device)
    for shard in draws.encode_share(index, count, params.run.sample_batch):
        print(f"shard {shard.number} of {len(draws.shards)}: images up to {shard.rows.stop} are encoded")


def _reads(root: Path, section: CouplingSection, coupling: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Returns the stage's address, and what decides its outputs as `stage_run` takes it."""
    item, inputs = f"{coupling}-{seed}", [_images(root) / "manifest.json"]
    match section:
        case TeacherCoupling():
            address, inputs = f"couple-teacher@{seed}", [*inputs, _teacher(root, seed)]
        case InverseRegressionCoupling():
            pairs = root / "artifacts" / "coupling" / f"teacher-{seed}" / "coupling.json"
            address, inputs = f"couple-one-step@{item}", [*inputs, pairs]
        case _:
            address = f"couple@{item}"
    return address, {"sections": {f"coupling.{coupling}": section}, "inputs": inputs, "judges": "gate"}


def _images(root: Path) -> Path:
    return root / "artifacts" / "data" / "train"


def _teacher(root: Path, seed: int) -> Path:
    return root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"


def _judged(run: StageRun, draws: Draws, gate: Gate, key: str) -> dict[str, Any]:
    """Writes the card, hands it to the tracker and holds it against the gate.

    Raises:
        InputError: It is outside, which is not allowed; the tracker has it all the same.
    """
    card = draws.write_card()
    worst = judge(card, thresholds(gate))
    figures = {**figures_of(card), "gate": {"passed": worst.excess <= 0, "line": str(worst), **asdict(worst)}}
    run.tracker.artifact(run.checkpoint / "card.json", "card.json")
    run.tracker.image(run.checkpoint / "card.png", "card.png")
    run.report(dict(zip(("eigenvalue_min", "eigenvalue_max"), card["eigenvalues"], strict=True)), 0)
    for number, value in enumerate(figures["c2st_by_class"].values()):
        run.report({"c2st_of_class": value}, number)
    if worst.excess > 0 and not gate.allow:
        run.report({k: v for k, v in figures.items() if isinstance(v, float)}, 0)
        raise InputError(
            f"the teacher's coupling is outside {key}: {worst} (see {run.checkpoint / 'card.json'}); "
            f"{HELP[worst.measure]}, or set {key}.allow to true, which encodes nothing again"
        )
    if worst.excess > 0:
        print(f"nfm: the teacher's coupling is outside {key}, which allows it: {worst}", file=sys.stderr)
    return figures
