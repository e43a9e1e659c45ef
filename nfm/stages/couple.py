"""couple: what one coupling needs before a student can train on its pairs."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nfm.build.coupling import prepare_coupling
from nfm.build.draws import Draws, open_draws, thresholds
from nfm.config import Gate, InverseRegressionCoupling, Params, TeacherCoupling
from nfm.coupling.card import figures_of
from nfm.coupling.gate import HELP, judge
from nfm.coupling.shards import SHARD_BYTES
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.stages.run import StageRun, stage_run
from nfm.train.launch import open_processes


def couple(root: Path, params: Params, coupling: str, seed: int, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes artifacts/coupling/<coupling>-<seed>/ and the coupling's figures.

    The teacher's coupling has a card and a gate. What is encoded stays in the checkpoint's folder until
    the stage has ended well, so that a killed stage, and one that the gate has failed, encode nothing
    twice; processes share the work.

    Raises:
        InputError: The card is outside the gate, among others.
    """
    section, item = params.coupling[coupling], f"{coupling}-{seed}"
    data, folder = root / "artifacts" / "data" / "train", root / "artifacts" / "coupling" / item
    split = Split.open(data, verify=True)
    address, inputs = f"couple@{item}", [data / "manifest.json"]
    teacher = root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"
    if isinstance(section, TeacherCoupling):
        address, inputs = f"couple-teacher@{seed}", [*inputs, teacher]
    if isinstance(section, InverseRegressionCoupling):
        address, inputs = f"couple-one-step@{item}", [*inputs, folder.with_name(f"teacher-{seed}") / "coupling.json"]
    with stage_run(
        address,
        root,
        params,
        sections={f"coupling.{coupling}": section},
        inputs=inputs,
        judges="gate",
        tags={"seed": seed, "coupling": coupling},
    ) as run:
        draws, figures = None, {}
        if isinstance(section, TeacherCoupling):
            options = {"seed": seed, "device": run.device, "shard_bytes": shard_bytes}
            draws = open_draws(section, run.checkpoint, split, teacher, **options)
            draws.encode(params.run.sample_batch, open_processes(), run.report)
            figures = _judged(run, draws, section.gate, f"coupling.{coupling}.gate") if run.main else {}
        if run.main:
            figures |= prepare_coupling(section, folder, split, draws=draws, seed=seed, device=run.device)
            run.write_metrics(f"couple/{item}", figures)
            run.report({k: v for k, v in figures.items() if isinstance(v, float)}, 0)


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
