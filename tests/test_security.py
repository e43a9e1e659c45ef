"""What hostile parameters, pickles and curious readers get: nothing."""

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.pipeline import pipeline
from flows.workspace import params_of, workspace
from nfm.config import HIDDEN, parse_params, read_mapping
from nfm.errors import InputError
from tests.conftest import ROOT, Tiny

CODE = sorted(path for folder in ("nfm", "flows", "infra", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
HOSTILE = [
    "x; touch {marker}",
    "$(touch {marker})",
    "`touch {marker}`",
    "x\ntouch {marker}",
    "x && touch {marker}",
    "../../x",
    "/x",
    "--seed",
    "x y",
    "x@y",
    "x.y",
    "${{couplings}}",
    "é",
    "",
    *HIDDEN,
]


def with_coupling(name: str) -> dict[str, Any]:
    """Overrides that bring a coupling of a name; whoever may start a flow run may send them."""
    sections = read_mapping(ROOT / "params.yaml")["coupling"]
    return {"coupling": {**sections, name: {"kind": "independent"}}, "couplings": [name], "one_step": []}


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_coupling_whose_name_is_more_than_a_word_is_refused(name: str, tmp_path: Path):
    """Since dvc.yaml puts it into commands and paths."""
    name = name.format(marker=tmp_path / "marker")
    with pytest.raises(InputError, match="coupling has a section") as raised:
        params_of(ROOT, None, with_coupling(name))
    assert "\n" not in str(raised.value)
    assert params_of(ROOT, None, with_coupling("mine_2"))["from_data"] == ["mine_2"]


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_run_with_hostile_parameters_ends_as_refused_and_runs_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copyfile(ROOT / "nfm" / "recipes" / "digits.yaml", tiny.root / "params.yaml")
    monkeypatch.chdir(tiny.root)
    command = f"$(touch {tmp_path / 'marker'})"
    hostile: list[dict[str, Any]] = [
        {"overrides": with_coupling(f"x; {command}")},
        {"overrides": {f"student.{command}": 1}},
        {"overrides": {"seeds": [command]}},
        {"overrides": {"data.folder": "../outside", "data.kind": "mnist"}},
        {"overrides": {"infra.teacher": command}},
        {"recipe": f"../{command}"},
        {"recipe": "../../params"},
        {"stages": [command]},
        {"stages": ["--help"]},
    ]
    for parameters in hostile:
        state = pipeline(**parameters, return_state=True)  # pyright: ignore
        assert state.is_failed(), parameters
    assert not (tmp_path / "marker").exists()
    assert tiny.executed == []


def test_a_path_out_of_the_project_links_nothing_outside_the_workspace(tiny: Tiny):
    (tiny.root.parent / "outside").mkdir()
    with pytest.raises(InputError, match=r"data names '../outside', which leads out of the project"):
        workspace(tiny.root, {"data": {"folder": "../outside"}})
    assert not (tiny.root / ".workspaces" / "outside").exists()
    absolute = str(tiny.root.parent / "outside")
    assert workspace(tiny.root, {"data": {"folder": absolute}}).is_dir()


def test_a_recipe_of_a_users_own_is_no_code():
    text = "seeds: !!python/object/apply:os.getcwd []\n"
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text)
    mapping = read_mapping(ROOT / "params.yaml") | {"seeds": ["__import__('os')"]}
    with pytest.raises(InputError, match=r"seeds\.0 is "):
        parse_params(mapping, "params.yaml")


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call of a file, with the dotted name that is called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


def unsafe(name: str, call: ast.Call) -> bool:
    """Whether a call would run what a file of a stranger's says."""
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load":
        return options.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return options.get("allow_pickle", "False") != "False"
    if name in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        return True
    if options.get("shell", "False") != "False":
        return True
    return bool(
        re.fullmatch(r"(c?[Pp]ickle|cloudpickle|joblib|dill|marshal|shelve|pd)\.(loads?|open|read_pickle)", name)
    )


def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell():
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno} {name}"
        for path in CODE
        for name, call in calls(path)
        if unsafe(name, call)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pickle.load(f)",
        "pickle.loads(b)",
        "joblib.load(f)",
        "eval(x)",
        "yaml.load(f)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_search_finds_what_it_searches_for(code: str):
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert unsafe(ast.unparse(call.func), call)


def test_the_one_unpickler_makes_arrays_and_bytes_alone():
    users = [path.name for path in CODE for name, _ in calls(path) if name.endswith("Unpickler")]
    bases = [
        (path.name, ast.unparse(base))
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if "ickle" in ast.unparse(base)
    ]
    assert users == []
    assert bases == [("cifar10.py", "pickle.Unpickler")]  # tests/test_cifar10.py attacks it


SECRET = re.compile(
    rb"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{36}|xox[baprs]-[0-9A-Za-z-]{10,}"
    rb"|(?i:password|secret|token)\w*['\"]?\s*[:=]\s*['\"][A-Za-z0-9+/_-]{20,}['\"]"
)


def test_no_file_of_the_repository_holds_a_secret():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]
    assert len(files) > 100
    assert [str(file.relative_to(ROOT)) for file in files if SECRET.search(file.read_bytes())] == []
    for planted in (b"AKIA" + b"A" * 16, b"-----BEGIN RSA " + b"PRIVATE KEY", b'"token": "' + b"a" * 24 + b'"'):
        assert SECRET.search(planted)
