"""Throughput and price of 1 to 256 GPUs, by a formula and by a simulation: writes results/simulation.json and .png.

FLOPs and bytes are counted, the speed of one GPU is that of results/gpu.json, links and prices are assumed; `--set`
assumes others. Of every size the simulated throughput is quoted; its ratio to the formula's says what uneven processes
cost. `--check` holds the simulation against two processes that train on this machine's CPU and leaves the rest alone.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cluster import Cluster, changed, read_seconds, update
from benchmarks.events import update_seconds
from benchmarks.two_processes import check
from benchmarks.workload import Measured, Training, read_measured, trainings
from nfm.artifacts import read_json, write_json
from nfm.errors import InputError
from nfm.recipes import load_recipe

RESULTS = Path(__file__).parents[1] / "results"
RECIPES = ("imagenet64", "imagenet256")
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ADAPTERS = 8  # of a machine with one for each of its GPUs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=NUMBER", dest="settings", help=keys())
    parser.add_argument("--gpu", type=Path, default=RESULTS / "gpu.json", help="file with the speed of one GPU")
    parser.add_argument("--to", type=Path, default=RESULTS / "simulation.json", help="file for the figures")
    parser.add_argument("--check", action="store_true", help="only compare with two processes of this machine")
    given = parser.parse_args()
    try:
        cluster = changed(Cluster(), given.settings)
        content: dict[str, Any] = read_json(given.to) if given.to.exists() else {}
        if given.check:
            write_json(given.to, content | {"check": check()})
            print(check_text(read_json(given.to)["check"]))
            return
        measured = read_measured(given.gpu)
    except InputError as error:
        print(f"benchmarks.simulate: {error}", file=sys.stderr)
        sys.exit(2)
    found = simulated(RECIPES, measured, cluster, GPUS)
    write_json(given.to, found | {key: content[key] for key in ("check",) if key in content})
    plot(found, given.to.with_suffix(".png"))
    print("\n\n".join(f"{name}\n{text(rows)}" for name, rows in found["tables"].items()))


def keys() -> str:
    """Returns what --set knows."""
    return "of " + ", ".join(f"{name} ({value['unit']})" for name, value in Cluster().assumptions().items())


def simulated(
    recipes: Sequence[str], measured: dict[str, Measured], cluster: Cluster, gpus: Sequence[int]
) -> dict[str, Any]:
    """Returns all tables, with what they are made of.

    The batch is the recipe's, or as many images a GPU as the recipe's micro-batch; the network is the cluster's, or one
    adapter for each GPU of a machine.
    """
    tables: dict[str, list[dict[str, Any]]] = {"batch of the recipe": [], "batch grows": [], "faster network": []}
    fast = replace(cluster, network=ADAPTERS * cluster.network)
    for recipe in recipes:
        for training in trainings(load_recipe(recipe), measured, cluster):
            tables["batch of the recipe"] += rows(recipe, training, gpus, cluster, grows=False)
            tables["batch grows"] += rows(recipe, training, gpus, cluster, grows=True)
            tables["faster network"] += rows(recipe, training, gpus, fast, grows=False)
    return {
        "measured": {work: asdict(value) for work, value in measured.items()},
        "assumed": cluster.assumptions() | OTHER,
        "tables": tables,
    }


OTHER = {
    "use of the GPU": {
        "value": "that of the networks in results/gpu.json",
        "source": "recipes differ from them in the teacher's width (1024, not 768) and, at ImageNet 256, in the patch",
    },
    "averaging": {"value": "a ring in a machine, then rings or trees over machines", "source": "benchmarks/cluster.py"},
    "train.compile": {"value": "true", "source": "what results/gpu.json measured; the recipes say false"},
    "stored noise": {"value": "16 draws an image in float16", "source": "nfm/plan/storage.py"},
    "images": {"value": "uint8, latents in float16, read from S3 with every update", "source": "nfm/data"},
}


def rows(
    recipe: str, training: Training, gpus: Sequence[int], cluster: Cluster, *, grows: bool
) -> list[dict[str, Any]]:
    """Returns a training's figures by the number of GPUs.

    Arguments:
        recipe: Its name.
        training: One of its trainings.
        gpus: Numbers of GPUs.
        cluster: Links and price.
        grows: Whether the batch is one micro-batch a GPU; else it is the recipe's.
    """
    found: list[dict[str, Any]] = []
    for count in gpus:
        job = replace(training.job, batch=count * training.job.micro_batch) if grows else training.job
        parts, bottleneck = update(job, count, cluster)
        seconds = update_seconds(job, count, cluster)
        hours = training.steps * training.job.batch / job.batch * seconds / 3600
        if training.encode is not None:
            hours += training.before * training.encode.per_image / count / 3600
        throughput = job.batch / seconds
        alone = found[0]["images_per_second"] / found[0]["gpus"] if found else throughput / count
        found.append(
            {
                "recipe": recipe,
                "training": training.name,
                "gpus": count,
                "batch": job.batch,
                "images_per_second": throughput,
                "efficiency": throughput / count / alone,
                "hours": hours,
                "price": hours * count * cluster.gpu_hour,
                "bottleneck": bottleneck,
                "seconds": asdict(parts),
                "simulated_over_formula": parts.seconds / seconds,
                "reading_over_update": read_seconds(job, count, cluster) / seconds,
            }
        )
    return found


def text(found: Sequence[dict[str, Any]]) -> str:
    """Returns rows as a table."""
    lines = [
        f"{'recipe':12}{'training':17}{'GPUs':>5}{'images/s':>10}{'efficiency':>11}{'hours':>9}{'USD':>9}  bottleneck"
    ]
    for row in found:
        lines.append(
            f"{row['recipe']:12}{row['training']:17}{row['gpus']:5}{row['images_per_second']:10,.0f}"
            f"{row['efficiency']:11.2f}{row['hours']:9,.1f}{row['price']:9,.0f}  {row['bottleneck']}"
        )
    return "\n".join(lines)


def check_text(found: dict[str, Any]) -> str:
    """Returns what two processes of a CPU took beside what was predicted."""
    lines = []
    for row in found["rows"]:
        ratios = row["throughput_predicted_over_measured"].items()
        quoted = ", ".join(f"{ratio:.2f} ({kind})" for kind, ratio in ratios)
        lines.append(
            f"{row['images_a_process']} images a process: {row['images_per_second']:.1f} images/s, "
            f"predicted over measured {quoted}"
        )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws images a second and the price by the number of GPUs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    table = found["tables"]["batch of the recipe"]
    recipes = list(dict.fromkeys(row["recipe"] for row in table))
    figure, axes = pyplot.subplots(
        2, len(recipes), figsize=(5.5 * len(recipes), 7), layout="constrained", squeeze=False
    )
    for column, recipe in enumerate(recipes):
        top, bottom = axes[0][column], axes[1][column]
        for training in dict.fromkeys(row["training"] for row in table):
            some = [row for row in table if (row["recipe"], row["training"]) == (recipe, training)]
            gpus, speed = ([row[key] for row in some] for key in ("gpus", "images_per_second"))
            (line,) = top.loglog(gpus, speed, "o-", label=training)
            top.loglog(gpus, [speed[0] * n / gpus[0] for n in gpus], ":", color=line.get_color())
            bottom.loglog(gpus, [row["price"] for row in some], "o-", label=training)
        top.set(title=recipe, xlabel="GPUs", ylabel="images a second")
        bottom.set(xlabel="GPUs", ylabel="price of a training, USD")
        for part in (top, bottom):
            part.set_xticks(gpus, [str(n) for n in gpus])
            part.minorticks_off()
            part.legend(frameon=False)
            part.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
