"""Complete params files that come with the package, and the same with every size shrunk.

A recipe is NAME.yaml in this folder.
"""

import json
import math
from importlib import resources
from typing import Any

import yaml

from nfm.config import Params, nearest, parse_params
from nfm.errors import InputError

TRAININGS = ("features", "teacher", "student")
RESIZED = ("folder", "imagenet")  # data sets of images of any size


def recipe_names() -> list[str]:
    """Returns the names of the params files that come with the package."""
    files = (resources.files("nfm.recipes")).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """Returns a recipe, a complete params file, as text.

    Raises:
        InputError: There is no recipe of that name.
    """
    if name not in recipe_names():
        raise InputError(f"recipe is {name!r}, which does not exist{nearest(name, recipe_names())}")
    return (resources.files("nfm.recipes") / f"{name}.yaml").read_text()


def load_recipe(name: str) -> Params:
    """Returns a recipe, checked.

    Raises:
        InputError: There is no recipe of that name.
    """
    return parse_params(yaml.safe_load(recipe_text(name)), name)


def smoke(mapping: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a params mapping on which every stage takes seconds, to see whether it runs.

    Networks, trainings, fits and samples shrink, and images, in size and number, where the data set resizes them
    anyway; seeds become the first. What decides which code runs stays: data set, patches, kinds of coupling, labels,
    precision, guidance, solvers, and whether batches are cut into pieces.

    Arguments:
        mapping: What a params file holds; it is not changed.
    """
    small = json.loads(json.dumps(mapping))
    small["seeds"] = small["seeds"][:1]
    for name in TRAININGS:
        small[name]["train"] |= {"steps": 2, "batch": 8, "warmup": 1}
    small["features"]["width"] = 8
    small["teacher"] |= {"blocks": 2, "layers": 1, "width": 16, "head_size": 8}
    small["student"] |= {"depth": 1, "width": 16, "head_size": 8}
    for section in small["coupling"].values():
        section |= {key: least for key, least in (("steps", 4), ("batch", 8)) if key in section}
        if isinstance(section.get("draws"), int):
            section["draws"] = min(2, section["draws"])
        if "gate" in section:
            section["gate"]["allow"] = True  # two updates make no teacher
    data = small["data"]
    images, factor = (data["images"], data["factor"]) if data["kind"] == "latents" else (data, 1)
    if images["kind"] in RESIZED:
        images |= {"image_size": min(images["image_size"], factor * _small_side(small)), "limit": 64}
    if factor > 1:
        data["keep"] = min(16, data["keep"])
    evaluate = small["evaluate"]
    evaluate |= {"samples": 10, "euler": evaluate["euler"][:2], "heun": evaluate["heun"][:1], "curvature_steps": 2}
    promote = small["promote"]
    promote |= {"samples": 10, "evaluations": 3, "nfe": promote["nfe"][:1]}
    run = small["run"]
    run |= {"log_every": 1, "sample_batch": 64, "micro_batch": None if run["micro_batch"] is None else 4}
    return small


def _small_side(mapping: dict[str, Any]) -> int:
    """Returns a side of four tokens; 8 at least, for the classifier."""
    side = math.lcm(*mapping["teacher"]["patch"], *mapping["student"]["patch"])
    return side * max(4, math.ceil(8 / side))


def smoke_text(name: str) -> str:
    """Returns a recipe with every size shrunk, as text.

    Raises:
        InputError: There is no recipe of that name.
    """
    small = smoke(yaml.safe_load(recipe_text(name)))
    head = f"# The recipe {name} with every size shrunk, to see whether it runs here: the numbers mean nothing.\n"
    return head + yaml.safe_dump(small, sort_keys=False, default_flow_style=None, width=120)
