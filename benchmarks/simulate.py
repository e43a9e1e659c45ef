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

from benchmarks.cluster import TRAFFIC, Cluster, buckets, changed, read_seconds, update
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
TRAININGS = ("teacher", "student, stored", "student, online", "student, online in bf16")
SHOWN = {  # in docs/many_gpus.md
    "batch of the recipe": ("batch of 256", (1, 8, 16, 64, 256)),
    "faster network": ("8 adapters", (16, 64, 256)),
    "batch grows": ("64 images a GPU", (16, 64, 256)),
}


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
    jobs: list[dict[str, Any]] = []
    for recipe in recipes:
        for training in trainings(load_recipe(recipe), measured, cluster):
            jobs.append({"recipe": recipe, "training": training.name} | described(training, cluster))
            tables["batch of the recipe"] += rows(recipe, training, gpus, cluster, grows=False)
            tables["batch grows"] += rows(recipe, training, gpus, cluster, grows=True)
            tables["faster network"] += rows(recipe, training, gpus, fast, grows=False)
    return {
        "measured": {work: asdict(value) for work, value in measured.items()},
        "assumed": cluster.assumptions() | OTHER,
        "jobs": jobs,
        "tables": tables,
    }


def described(training: Training, cluster: Cluster) -> dict[str, Any]:
    """Returns what the figures of a training are made of."""
    job, joined = training.job, buckets(training.job.gradients, cluster.bucket)
    return {
        "updates": training.steps,
        "batch": job.batch,
        "micro_batch": job.micro_batch,
        "pass": asdict(job.train),
        "encode": None if job.encode is None else asdict(job.encode),
        "encoded_before": training.before,
        "gradient_bytes": job.weight_bytes,
        "buckets": len(joined),
        "largest_bucket": asdict(max(joined, key=lambda bucket: bucket.bytes)),
        "image_bytes": job.image,
        "noise_bytes": job.noise,
    }


OTHER = {
    "use of the GPU": {
        "value": "that of the networks in results/gpu.json",
        "source": "recipes differ from them in the teacher's width (1024, not 768) and, at ImageNet 256, in the patch",
    },
    "averaging": {"value": "a ring in a machine, then rings or trees over machines", "source": "benchmarks/cluster.py"},
    "optimizer": {
        "value": f"the weights go {TRAFFIC} times through the memory, in float32",
        "source": "benchmarks/cluster.py",
    },
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
    alone = 0.0
    for count in gpus:
        job = replace(training.job, batch=count * training.job.micro_batch) if grows else training.job
        parts, bottleneck = update(job, count, cluster)
        seconds = update_seconds(job, count, cluster)
        hours = training.steps * training.job.batch / job.batch * seconds / 3600
        if training.encode is not None:
            hours += training.before * training.encode.per_image / count / 3600
        throughput = job.batch / seconds
        alone = alone or throughput / count
        numbers = {
            "images_per_second": throughput,
            "efficiency": throughput / count / alone,
            "hours": hours,
            "price": hours * count * cluster.gpu_hour,
            "simulated_over_formula": parts.seconds / seconds,
            "reading_over_update": read_seconds(job, count, cluster) / seconds,
        }
        found.append(
            {"recipe": recipe, "training": training.name, "gpus": count, "batch": job.batch, "bottleneck": bottleneck}
            | {name: short(value) for name, value in numbers.items()}
            | {"seconds": {name: short(value) for name, value in asdict(parts).items()}}
        )
    return found


def short(value: float) -> float:
    """Returns a number with five figures."""
    return float(f"{value:.5g}")


def text(found: Sequence[dict[str, Any]]) -> str:
    """Returns rows as a table."""
    lines = [
        f"{'recipe':12}{'training':24}{'GPUs':>5}{'images/s':>10}{'efficiency':>11}{'hours':>9}{'USD':>9}  bottleneck"
    ]
    for row in found:
        lines.append(
            f"{row['recipe']:12}{row['training']:24}{row['gpus']:5}{row['images_per_second']:10,.0f}"
            f"{row['efficiency']:11.2f}{row['hours']:9,.1f}{row['price']:9,.0f}  {row['bottleneck']}"
        )
    return "\n".join(lines)


def markdown(found: dict[str, Any], recipe: str) -> str:
    """Returns the table of a recipe for docs/many_gpus.md."""
    head = ["", "GPUs", *TRAININGS]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for name, (words, gpus) in SHOWN.items():
        for count in gpus:
            some = (row for row in found["tables"][name] if (row["recipe"], row["gpus"]) == (recipe, count))
            cells = [cell(row) for row in some]
            lines.append("| " + " | ".join([words, str(count), *cells]) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """Returns a row's figures: images a second, hours, price, bottleneck."""
    price = f"{row['price']:,.0f} USD"
    return f"{row['images_per_second']:,.0f}/s, {row['hours']:,.0f} h, {price}: {row['bottleneck']}"


def check_text(found: dict[str, Any]) -> str:
    """Returns what two processes of a CPU took beside what was predicted."""
    return "\n".join(
        f"{row['images_a_process']:2} images a process, throughput predicted over measured, {kind}: "
        f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        for row in found["rows"]
        for kind, ratio in row["predicted_over_measured"].items()
    )


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
