"""params.yaml: what is refused, and how the sentence helps."""

import copy
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from nfm.config import (
    Params,
    load_params,
    parse_params,
    read_mapping,
    with_overrides,
)
from nfm.errors import InputError
from nfm.recipes import recipe_names, recipe_text

ROOT = Path(__file__).parents[1]
DEMO = read_mapping(ROOT / "params.yaml")

# what is set in the demo's params -> words that the sentence must hold
WRONG = {
    "mistyped key": ({"student.train": {**DEMO["student"]["train"], "stps": 3}}, "steps"),
    "text for a number": ({"student.train.steps": "x"}, "student.train.steps is 'x'"),
    "fraction for an integer": ({"student.width": 64.5}, "student.width is 64.5"),
    "YAML 1.1 reads 1e-4 as text": ({"teacher.noise_std": "1e-4"}, "teacher.noise_std is '1e-4'"),
    "unknown data set": ({"data.kind": "digit"}, "data.kind is 'digit'"),
    "unknown coupling kind": ({"coupling.teacher.kind": "otx"}, "'minibatch-ot'"),
    "neither number nor online": ({"coupling.teacher.draws": "offline"}, "or 'online'"),
    "infinity": ({"teacher.noise_std": float("inf")}, "teacher.noise_std is inf"),
    "even NFE for Heun": ({"evaluate.heun": [4]}, "odd"),
    "NFE 0": ({"evaluate.euler": [0]}, "evaluate.euler.0 is 0"),
    "nothing to evaluate": ({"evaluate.euler": [], "evaluate.heun": []}, "both empty"),
    "coupling without section": ({"couplings": ["techer"]}, "did you mean 'teacher'"),
    "coupling of the data left out": ({"from_data": ["independent"]}, "expected ['independent', 'minibatch-ot', 'semi"),
    "one step without its kind": ({"one_step": ["teacher"]}, "one_step is ['teacher'], expected []"),
    "kind without one step": (
        {"couplings": ["teacher", "inverse-regression"], "one_step": []},
        "one_step is [], expected ['inverse-regression']",
    ),
    "one step without the teacher": (
        {"couplings": ["inverse-regression"], "one_step": ["inverse-regression"]},
        "without 'teacher'",
    ),
    "seed twice": ({"seeds": [0, 0]}, "each value once"),
    "no seeds": ({"seeds": []}, "expected 1 value"),
    "text for a list": ({"couplings": "teacher"}, "expected a list"),
    "patch of one number": ({"student.patch": [1]}, "expected 2 values"),
    "number for a section": ({"data": 3}, "expected a section"),
    "unknown key of a variant with a key of its name": ({"data": {"kind": "folder", "flop": 1}}, "yaml: data: 'flop'"),
    "wrong key named as its variant": ({"data": {"kind": "folder", "folder": 3}}, "data.folder is 3"),
    "keys of another kind missing": ({"data": {"kind": "mnist"}}, "data.folder is missing"),
    "even NFE for Heun at the gate": ({"promote.solver": "heun"}, "promote: nfe holds 2"),
    "two evaluations": ({"promote.evaluations": 2}, "promote.evaluations is 2"),
    "every number of samples is nearer": ({"promote.guards.memorisation": 0.5}, "promote.guards.memorisation is 0.5"),
    "infra without a deployment": ({"infra.teacher": ""}, "infra.teacher is ''"),
    "a price below nothing": ({"cost.cpu_hour": -1.0}, "cost.cpu_hour is -1.0"),
    "a price in words": ({"cost.gpu_hour": {"H100": "cheap"}}, "cost.gpu_hour.H100 is 'cheap'"),
    "infra as a word": ({"infra": "gpu-pool"}, "infra is 'gpu-pool', expected a section"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_params_give_one_sentence_that_names_the_key(changes, words):
    with pytest.raises(InputError) as caught:
        parse_params(with_overrides(DEMO, changes), "params.yaml")
    sentence = str(caught.value)
    assert sentence.startswith("params.yaml: ")
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("key", "hint"),
    [("studnt.width", "'student'"), ("student.widht", "'width'"), ("student.width.x", "deeper")],
)
def test_an_unknown_override_names_the_nearest_key(key, hint):
    with pytest.raises(InputError, match=hint):
        with_overrides(DEMO, {key: 1})


def test_overrides_leave_the_mapping_they_were_given_alone():
    before = copy.deepcopy(DEMO)
    changed = with_overrides(DEMO, {"student.train.steps": 7})
    assert changed["student"]["train"]["steps"] == 7
    assert before == DEMO


def test_params_are_frozen():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValidationError):
        params.student.width = 1  # type: ignore[misc]


def test_a_section_has_no_defaults_that_dvc_would_not_see():
    def fields(model, path=""):
        for name, field in model.model_fields.items():
            assert field.is_required(), f"{path}{name} has a default"

    for section in Params.__subclasses__() or [Params]:
        fields(section)
    for path in ("features", "teacher", "student", "evaluate", "promote", "cost", "run"):
        fields(Params.model_fields[path].annotation, f"{path}.")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_complete_and_right(name):
    assert parse_params(yaml.safe_load(recipe_text(name)), name).seeds


def test_other_couplings_bring_the_lists_that_follow_from_them():
    names = ["minibatch-ot", "teacher", "inverse-regression"]
    params = parse_params(with_overrides(DEMO, {"couplings": names}), "params.yaml")
    assert (params.from_data, params.one_step) == (("minibatch-ot",), ("inverse-regression",))
    with pytest.raises(InputError, match=r"from_data is \[\], expected \['minibatch-ot'\]"):
        parse_params(with_overrides(DEMO, {"couplings": names, "from_data": []}), "params.yaml")


def test_the_digits_recipe_is_the_demo_with_three_seeds_and_the_one_step_rival():
    recipe, rival = yaml.safe_load(recipe_text("digits")), "inverse-regression"
    assert recipe == {**DEMO, "seeds": [0, 1, 2], "couplings": [*DEMO["couplings"], rival], "one_step": [rival]}


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="digits"):
        recipe_text("digit")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml is not in"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"params\.yaml is not YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("3")
    with pytest.raises(InputError, match="expected sections"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_counts_in_what_dvc_knows_a_run_by(name):
    """A key called "size" would not: the outputs of another value would be restored for it."""
    from dvc.stage.cache import _get_cache_hash

    mapping = yaml.safe_load(recipe_text(name))

    def paths(node, *above):
        for key, value in node.items():
            yield from paths(value, *above, key) if isinstance(value, dict) and value else [(*above, key)]

    def changed(node, key, *below):
        return {**node, key: changed(node[key], *below) if below else "another"}

    found = list(paths(mapping))
    hashes = {_get_cache_hash({"params": {"params.yaml": changed(mapping, *path)}}) for path in found}
    assert len(hashes | {_get_cache_hash({"params": {"params.yaml": mapping}})}) == len(found) + 1


@pytest.mark.parametrize("text", [(ROOT / "params.yaml").read_text(), *map(recipe_text, recipe_names())])
def test_params_mean_the_same_after_dvc_has_rewritten_them(tmp_path, text):
    """As `dvc exp run -S` does, by the rules of YAML 1.2 and with its own quotes."""
    from dvc.utils.serialize import modify_yaml

    path = tmp_path / "params.yaml"
    path.write_text(text)
    before = load_params(path).model_dump()
    with modify_yaml(path) as mapping:
        mapping["student"]["width"] = 96
    after = load_params(path).model_dump()
    assert after["student"].pop("width") == 96
    before["student"].pop("width")
    assert after == before
