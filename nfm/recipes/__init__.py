"""Complete params files that come with the package, and the same with every size shrunk.

A recipe is NAME.yaml in this folder; `nfm.config` reads it as text.
"""

import json
from typing import Any

import yaml

from nfm.config import Params, parse_params, recipe_text

TRAININGS = ("features", "teacher", "student")


def load_recipe(name: str) -> Params:
    """Returns a recipe, checked.

    Raises:
        InputError: There is no recipe of that name.
    """
    return parse_params(yaml.safe_load(recipe_text(name)), name)


def smoke(mapping: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a params mapping on which every stage takes seconds, to see whether it runs.

    Networks, trainings, fits and samples shrink; seeds become the first. What decides which code runs stays: data set,
    patches, kinds of coupling, labels, precision, guidance, solvers, and whether batches are cut into pieces.

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
    evaluate = small["evaluate"]
    evaluate |= {"samples": 10, "euler": evaluate["euler"][:2], "heun": evaluate["heun"][:1], "curvature_steps": 2}
    run = small["run"]
    run |= {"log_every": 1, "sample_batch": 64, "micro_batch": None if run["micro_batch"] is None else 4}
    return small


def smoke_text(name: str) -> str:
    """Returns a recipe with every size shrunk, as text.

    Raises:
        InputError: There is no recipe of that name.
    """
    small = smoke(yaml.safe_load(recipe_text(name)))
    head = f"# The recipe {name} with every size shrunk, to see whether it runs here: the numbers mean nothing.\n"
    return head + yaml.safe_dump(small, sort_keys=False, default_flow_style=None, width=120)
