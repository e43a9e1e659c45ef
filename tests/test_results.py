"""docs/ shows what the files in results/ hold."""

import json
from pathlib import Path

import pytest

from benchmarks import starts
from benchmarks.chaos.scene import NOTICE
from nfm.recipes import recipe_names
from nfm.study import load_study, study_names, table

ROOT = Path(__file__).parents[1]
# The README has the table of the digits.
SUMMARIES = [
    name
    for name in [*recipe_names(), "digits-redraw", "mnist-narrow", "mnist16-6000", "mnist16-redraw"]
    if name != "digits" and (ROOT / "results" / f"{name}.json").is_file()
]
PAIRS = {
    "flow+flow": "times two flow runs",
    "flow+dvc": "times `dvc repro` beside a flow run",
    "dvc+flow": "times a flow run beside `dvc repro`",
}
STUDIES = sorted((ROOT / "results" / "studies").glob("*.json"))


def test_the_tables_of_recipes_are_those_of_their_summaries():
    for name in SUMMARIES:
        summary = json.loads((ROOT / "results" / f"{name}.json").read_text())
        assert len(summary["seeds"]) == 3
        results = {"variants": [{"name": name, "summary": summary}]}
        assert table(results) in (ROOT / "docs" / "results.md").read_text(), name


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_a_studys_table_is_that_of_its_file_and_the_file_that_of_its_recipe(path: Path):
    results, text = json.loads(path.read_text()), (ROOT / "docs" / "results.md").read_text()
    assert table(results) in text
    if path.stem not in study_names():
        # Its options did not help and are gone; the page says where they are.
        assert f"`{results['commit'][:7]}`" in text
        return
    study = load_study(path.stem)
    assert results["question"] == study.question
    assert results["common"] == {k: list(v) if isinstance(v, tuple) else v for k, v in study.common.items()}
    assert [variant["name"] for variant in results["variants"]] == list(study.variants)


def test_where_samplers_started_is_what_was_measured():
    results = json.loads((ROOT / "results" / "starts.json").read_text())
    assert [variant["name"] for variant in results["variants"]] == list(load_study(results["study"]).variants)
    assert starts.table(results) in (ROOT / "docs" / "results.md").read_text()


def test_the_seconds_in_the_docs_are_those_that_were_measured():
    measured = json.loads((ROOT / "results" / "stack.json").read_text())
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("| | seconds |") :].partition("\n\n")[0].splitlines()[2:]
    parts = [measured[name] for name in ("cold_start", "cached_run", "cold_clone", "cold_clone_by_the_flow")]
    seconds = [part["seconds"] for part in parts]
    wanted = [seconds[0], measured["cold_start"]["ready_seconds"], *seconds[1:]]
    assert [row.split("|")[2].strip() for row in table] == [f"{value:.0f}" for value in wanted]
    assert measured["cold_clone"]["stages_run"] == []
    assert measured["cold_clone_by_the_flow"]["stages_run"] == ["report"]


def test_the_figures_of_shared_couplings_are_those_that_were_measured():
    measured = json.loads((ROOT / "results" / "fan_out.json").read_text())
    text = " ".join((ROOT / "docs" / "orchestration.md").read_text().split())
    overhead = measured["overhead"]
    assert f"two tasks at once are {measured['scaling']['ratio']['median']} times as fast" in text
    assert measured["scaling"]["same_bytes"] is True
    assert f"{overhead['milliseconds_a_share']:.0f} ms, of which {overhead['cpu_milliseconds_a_share']:.0f} ms" in text
    assert f"took {overhead['seconds']:.0f} s and {sum(overhead['requests'].values())} requests" in text
    assert overhead["shares"] == 1000


def test_what_kills_cost_is_what_was_measured():
    measured = json.loads((ROOT / "results" / "chaos.json").read_text())
    text = " ".join((ROOT / "docs" / "orchestration.md").read_text().split())
    assert measured["kills"] == sum(kind["kills"] for kind in measured["by_kind"].values()) == 200
    names = ("lost", "stale", "trained_twice", "hand_needed")
    assert {name: measured[name] for name in names} == dict.fromkeys(names, 0)
    assert f"Measured at commit `{measured['commit'][:7]}`, over {measured['rounds']} finished runs: 0 outputs" in text
    assert f"{measured['updates_redone_after_a_checkpoint']} updates after a checkpoint were done again" in text
    end = measured["seconds_from_sigterm_to_end"]
    assert end["most"] < NOTICE
    assert f"{end['most']} s is the longest that {end['of']} preempted runs took" in text
    assert measured["still_running"] == measured["stages_run_again_at_the_end"] == []
    assert f"the automations found {measured['found_dead_by_the_automation']} flow runs" in text


def test_what_two_runs_at_once_come_to_is_what_was_measured():
    measured = json.loads((ROOT / "results" / "pairs.json").read_text())
    text = " ".join((ROOT / "docs" / "orchestration.md").read_text().split())
    for kind, words in PAIRS.items():
        found = measured[kind]
        assert (found["both_right"], found["lock_errors"], found["trained_twice"]) == (found["pairs"], 0, 0)
        assert f"{found['pairs']} {words}" in text


def test_what_mlflows_interface_takes_is_what_was_measured():
    measured = json.loads((ROOT / "results" / "mlflow_ui.json").read_text())
    text = " ".join((ROOT / "docs" / "tracking.md").read_text().split())
    assert f"With {measured['runs']} runs" in text
    for view, seconds in measured["seconds"].items():
        assert f"{view} {seconds:.0f} s" in text


def test_what_a_server_answers_is_what_was_measured():
    measured = json.loads((ROOT / "results" / "serve.json").read_text())
    text = " ".join((ROOT / "docs" / "models.md").read_text().split())
    one, many = (
        [round(figure["images_per_second"]) for figure in measured["figures"] if figure["images_per_request"] == rows]
        for rows in (1, 64)
    )
    assert f"at {measured['nfe']} NFE: {one[0]}, {one[1]} and {one[2]} images a second in requests for one" in text
    assert f"{many[0]}, {many[1]} and {many[2]} in requests for 64" in text
