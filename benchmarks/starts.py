"""What is left of a student's distance, by where its sampler starts: `python -m benchmarks.starts length`.

A student of the teacher's pairs has seen the teacher's noise of images at t = 1, and is started from N(0, I). Here the
trained students of a study are started from both, with the same labels: where the distance goes away with the
teacher's noise, the student has learnt its pairs, and what is left is how far that noise is from N(0, I). Noise of
training images is measured against the held-out ones, and noise of held-out ones, which neither the teacher nor the
student has seen, against the training images; the images themselves are what both can reach.

The study has to have run, as in `python -m flows.study length`: its workspaces are read.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from flows.workspace import params_of, place_of
from nfm.artifacts import write_json
from nfm.build.coupling import load_coupling
from nfm.build.measure import Measure, load_measure
from nfm.build.solve import make_solver
from nfm.build.student import load_student
from nfm.config import Params, parse_params
from nfm.coupling.base import Batch
from nfm.data.shards import Split
from nfm.metrics.fidelity import extract, frechet
from nfm.metrics.statistics import Accumulator
from nfm.random import generator_for
from nfm.solve.sample import sample
from nfm.solve.solvers import grid, steps_for
from nfm.stages.fit import read_batch
from nfm.student.velocity import guided
from nfm.study import load_study

COUPLING = "teacher"
SIDES = {"train": "test", "test": "train"}  # whose images give labels and noise, and which they are measured against
CPU = torch.device("cpu")


def of_seed(place: Path, params: Params, seed: int) -> Iterator[tuple[str, str, str, float]]:
    """Gives the FD of one seed's student: the side, what is measured, at how many evaluations, and the distance."""
    measure = load_measure(params.evaluate, place, CPU)
    item = f"{COUPLING}-{seed}"
    model = load_student(place / "artifacts" / "student" / item / "student.safetensors", CPU).model
    train = Split.open(place / "artifacts" / "data" / "train")
    coupling = load_coupling(place / "artifacts" / "coupling" / item, train, CPU)
    for side, against in SIDES.items():
        batch = _drawn(Split.open(place / "artifacts" / "data" / side), params.evaluate.samples, seed)
        own = generator_for(seed, 1)
        starts = {
            "N(0, I)": torch.randn(batch.data.shape, generator=own),
            f"noise of {side} images": coupling.pair(batch, own).noise,
        }
        for name, noise in starts.items():
            for nfe, images in _samples(model, noise, batch.label, params):
                yield side, name, str(nfe), _distance(measure, against, images)
        yield side, f"{side} images themselves", "", _distance(measure, against, batch.data)


def _drawn(split: Split, count: int, seed: int) -> Batch:
    rows = torch.randint(len(split), (count,), generator=generator_for(seed, 0))
    return read_batch(split, rows, CPU)


def _samples(model: Any, noise: Tensor, label: Tensor | None, params: Params) -> Iterator[tuple[int, Tensor]]:
    section = params.evaluate
    by_nfe = dict.fromkeys(section.heun, "heun") | dict.fromkeys(section.euler, "euler")
    for nfe, name in sorted(by_nfe.items()):
        solver = make_solver(name)
        times = grid(section.grid, steps_for(solver, nfe))
        ends = sample(
            lambda label: guided(model, label, section.guidance), noise, label, solver, times, params.run.sample_batch
        )
        yield nfe, ends.x


def _distance(measure: Measure, against: str, images: Tensor) -> float:
    accumulator = Accumulator()
    accumulator.add(extract(measure.ruler.extractor, measure.pixels(images)))
    reference = {"train": measure.train, "test": measure.test}[against]
    return frechet(reference.statistics, accumulator.statistics())


def measure_study(root: Path, name: str) -> dict[str, Any]:
    """Measures the students of a study's variants, all seeds; FD as {side: {what: {nfe: [a value per seed]}}}."""
    study, variants = load_study(name), []
    for variant in study.variants:
        mapping = params_of(root, study.recipe, study.overrides(variant))
        params, place = parse_params(mapping, variant), place_of(root, mapping)
        fd: dict[str, dict[str, dict[str, list[float]]]] = {}
        for seed in params.seeds:
            for side, what, nfe, value in of_seed(place, params, seed):
                fd.setdefault(side, {}).setdefault(what, {}).setdefault(nfe, []).append(value)
        variants.append({"name": variant, "fd": fd})
    return {"study": name, "recipe": study.recipe, "variants": variants}


def table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown; what the images themselves come to stands in all columns."""
    first = next(iter(results["variants"][0]["fd"]["train"].values()))
    nfes = sorted(first, key=int)
    lines = [["student", "started from", "measured against", *(f"NFE {nfe}" for nfe in nfes)]]
    lines.append(["---"] * len(lines[0]))
    for variant in results["variants"]:
        for side, against in SIDES.items():
            for what, values in variant["fd"][side].items():
                cells = [_spread(values.get(nfe, values.get("", []))) for nfe in nfes]
                lines.append([variant["name"], what, f"{against} images", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="of a file in nfm/recipes/studies")
    parser.add_argument("--to", type=Path, default=Path("results/starts.json"), help="file for the figures")
    given = parser.parse_args()
    results = measure_study(Path.cwd(), given.study)
    write_json(given.to, results)
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
