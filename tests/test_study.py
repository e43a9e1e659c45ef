"""Studies: the files that come with the package, and what is joined from their runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.states import Completed

import flows.study
from flows.workspace import params_of, place_of
from nfm.errors import InputError
from nfm.recipes import recipe_text
from nfm.study import load_study, study_names, table

ROOT = Path(__file__).parents[1]


QUICK = {"mnist-student", "mnist-length", "mnist-teacher"}  # one seed, and said so in docs/results.md
BUDGETS = {"length", "mnist-length"}  # whose question is how long a student trains


@pytest.mark.parametrize("name", study_names())
def test_a_studys_variants_are_params_that_differ_in_what_they_say_and_spare_the_test_images(name: str):
    study = load_study(name)
    params = [params_of(ROOT, study.recipe, study.overrides(variant)) for variant in study.variants]
    assert len({json.dumps(p, sort_keys=True) for p in params}) == len(params)
    assert all(p["data"]["validation"] and len(p["seeds"]) == (1 if name in QUICK else 3) for p in params)
    assert len({json.dumps([p["data"], p["evaluate"]]) for p in params}) == 1
    assert (len({p["student"]["train"]["steps"] for p in params}) == 1) == (name not in BUDGETS)


def test_a_student_of_one_step_has_a_single_figure_in_its_row():
    fd = {"teacher": {"1": [1.0], "15": [3.0], "2": [2.0]}, "inverse-regression": {"1": [4.0]}}
    other = {"curvature": {"teacher": [0.25]}, "coupling": {"c2st": 0.5}, "teacher": {"fd_denoised": 9.0}}
    lines = table({"variants": [{"name": "a", "summary": {"fd": fd, **other}}]}).splitlines()
    assert lines[0] == "| NFE | 1 | 2 | 15 | κ | C2ST | teacher |"
    assert lines[2:] == [
        "| a, teacher | 1.00 | 2.00 | 3.00 | 0.250 | 0.500 | 9.00 |",
        "| a, inverse-regression | 4.00 |  |  |  |  |  |",
    ]


def test_an_unknown_study_is_one_sentence():
    with pytest.raises(InputError, match=r"'drws', which does not exist; did you mean 'draws'\?"):
        load_study("drws")


def test_a_study_joins_the_summaries_of_its_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: str
):
    (tmp_path / "params.yaml").write_text(recipe_text("digits"))
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    @flow
    def pipeline(recipe: str, overrides: dict[str, Any]) -> Any:
        """Leaves a summary whose figures tell the variant's number."""
        seen.append(overrides)
        number = float(len(seen))
        folder = place_of(tmp_path, params_of(tmp_path, recipe, overrides)) / "results"
        folder.mkdir(parents=True)
        fd = {"1": [number, number + 2], "15": [number + 2, number + 4], "2": [number, number + 2]}
        coupling, teacher = {"c2st": 0.5 + number / 100}, {"fd_denoised": 10 * number}
        summary = {"fd": {"teacher": fd}, "curvature": {"teacher": [0.25]}, "coupling": coupling, "teacher": teacher}
        (folder / "summary.json").write_text(json.dumps(summary))
        return Completed()

    monkeypatch.setattr(flows.study, "pipeline", pipeline)
    assert flows.study.main(["draws"]) == 0
    results = json.loads((tmp_path / "results" / "studies" / "draws.json").read_text())
    assert [variant["overrides"] for variant in results["variants"]] == list(load_study("draws").variants.values())
    assert results["commit"] == "none"
    assert seen[1] == {**results["common"], "coupling.teacher.draws": 4}
    assert (
        table(results).splitlines()[3]
        == "| 4 draws | 3.00 ± 1.41 | 3.00 ± 1.41 | 5.00 ± 1.41 | 0.250 | 0.520 | 20.00 |"
    )
    assert (tmp_path / "results" / "studies" / "draws.svg").is_file()


def test_a_study_that_names_a_wrong_param_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prefect_server: str
):
    studies = tmp_path / "studies"
    studies.mkdir()
    wrong = {
        "question": "?",
        "recipe": "digits",
        "common": {},
        "variants": {"a": {}, "b": {"coupling.teacher.draw": 4}},
    }
    (studies / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    monkeypatch.setattr("nfm.study._folder", lambda: studies)
    monkeypatch.setattr(flows.study, "pipeline", None)
    assert flows.study.main(["wrong"]) == 2
    assert "did you mean 'draws'" in capsys.readouterr().err
