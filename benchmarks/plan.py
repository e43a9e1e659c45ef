"""Whether the planner is right about time: writes results/plan.json, in some five minutes of one CPU core.

Stages: the units of each stage of the recipe digits, one seed, are timed for a few seconds, which gives its forecast;
then it runs whole. Scaling: the FLOP rate of one network where arithmetic dominates gives the time of another.
Seconds are those of the processor, so that other programs on the machine disturb less; "wall" is what a clock showed.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from nfm.artifacts import write_json
from nfm.config import Params, parse_params, with_overrides
from nfm.plan.forecast import forecast, measure
from nfm.plan.size import Size, data_size
from nfm.plan.work import Stage
from nfm.recipes import recipe_text
from nfm.stages.couple import couple
from nfm.stages.evaluate import evaluate_student, evaluate_teacher
from nfm.stages.features import features
from nfm.stages.prepare import prepare
from nfm.stages.reference import reference
from nfm.stages.run import stage_device
from nfm.stages.student import student
from nfm.stages.teacher import teacher
from nfm.train.launch import open_processes

RESULT = Path(__file__).parents[1] / "results" / "plan.json"
RECIPE = "digits"
COUPLINGS = ["independent", "minibatch-ot", "semidiscrete-ot", "teacher"]
SECONDS = 3.0  # spent on each unit
LARGE = {  # a teacher and students whose updates are bound by arithmetic on one core
    "teacher.width": 256,
    "teacher.head_size": 64,
    "teacher.blocks": 2,
    "teacher.layers": 2,
    "student.width": 384,
    "student.head_size": 64,
    "student.depth": 4,
    "student.patch": [2, 2],
    "student.train.batch": 16,
}


def main() -> None:
    os.environ["NFM_TRACKER"] = "none"
    device = stage_device(open_processes())
    with tempfile.TemporaryDirectory() as folder:
        stages = compare_stages(Path(folder), device)
    result = {
        "recipe": RECIPE,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "stages": stages,
        "scaling": compare_scaling(device),
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def compare_stages(root: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Returns each stage's forecast and true seconds, of one run."""
    params = read({"seeds": [0], "couplings": COUPLINGS, "one_step": []})
    size = data_size(params.data, root, None, None)
    planned = {stage.name: stage for stage in forecast(params, size, disk=0).stages}
    prepare(root, params)
    for name in set(params.couplings) - {"semidiscrete-ot", "teacher"}:
        couple(root, params, name, 0)
    return {
        name: compare(planned[name], params, size, device, run) for name, run in runs(root, params, planned).items()
    }


def runs(root: Path, params: Params, planned: dict[str, Stage]) -> dict[str, Callable[[], None]]:
    """Returns how each planned stage is run, in order."""
    calls: dict[str, Callable[[], None]] = {
        "features": partial(features, root, params),
        "reference": partial(reference, root, params),
        "teacher": partial(teacher, root, params, 0),
        "couple@semidiscrete-ot": partial(couple, root, params, "semidiscrete-ot", 0),
        "couple-teacher": partial(couple, root, params, "teacher", 0),
        **{f"student@{name}": partial(student, root, params, name, 0) for name in params.couplings},
        "evaluate": partial(evaluate_student, root, params, "teacher", 0),
        "evaluate-teacher": partial(evaluate_teacher, root, params, 0),
    }
    return {name: calls[name] for name in planned}


def compare(
    stage: Stage, params: Params, size: Size, device: torch.device, run: Callable[[], None]
) -> dict[str, float]:
    """Forecasts a stage and runs it."""
    one = Stage(stage.name, 1, stage.work)
    predicted = one.measured(measure(params, size, [one], device, SECONDS, time.process_time))
    start, wall = time.process_time(), time.perf_counter()
    run()
    measured, wall = time.process_time() - start, time.perf_counter() - wall
    return ratio(predicted, measured) | {"wall": round(wall, 3)}


def compare_scaling(device: torch.device) -> dict[str, dict[str, float]]:
    """Returns the seconds of large updates, forecast from the FLOPs and the rate of the teacher's."""
    params, size = read(LARGE | {"couplings": ["independent"], "one_step": []}), Size((1, 16, 16), 10, 2000, 500)
    params = params.model_copy(update={"teacher": params.teacher.model_copy(update={"patch": (1, 16)})})
    wanted = ("teacher", "student@independent")
    listed = [stage for stage in forecast(params, size, disk=0).stages if stage.name in wanted]
    seconds = measure(params, size, listed, device, 5 * SECONDS, time.process_time)
    flops = {work.unit: sum(work.flops.values()) for stage in listed for work in stage.work}
    known, asked = (unit for stage in listed for unit in [stage.work[0].unit])
    return {asked: ratio(seconds[known] / flops[known] * flops[asked], seconds[asked])}


def ratio(predicted: float, measured: float) -> dict[str, float]:
    return {
        "predicted": round(predicted, 3),
        "measured": round(measured, 3),
        "ratio": round(predicted / measured, 3),
    }


def read(overrides: dict[str, Any]) -> Params:
    return parse_params(with_overrides(yaml.safe_load(recipe_text(RECIPE)), overrides), RECIPE)


if __name__ == "__main__":
    main()
