"""What is killed comes back: a short trial with one kill of each kind, and proof that its judges can find fault."""

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from benchmarks.chaos.judge import (
    TIMED,
    Execution,
    compare,
    executions,
    fingerprints,
    redone,
    repeats,
    unrecorded,
    unsent,
)
from benchmarks.chaos.rounds import Deck
from benchmarks.chaos.scene import KINDS, TWICE, Scene
from benchmarks.chaos.trial import trial
from tests.test_stack import real


@real
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_in_every_way_ends_as_one_that_is_not():
    result = trial(Path(tempfile.gettempdir()), len(KINDS), seed=1, references=1, seconds=900, say=print, short=True)
    assert {kind: counts["kills"] for kind, counts in result["by_kind"].items()} == dict.fromkeys(KINDS, 1)
    wrong = {name: result[name] for name in ("lost", "stale", "trained_twice", "hand_needed")}
    assert wrong == dict.fromkeys(wrong, 0), result["notes"]
    assert result["stages_run_again_at_the_end"] == []
    assert result["seconds_from_sigterm_to_end"]["of"] == 1
    outputs = result["outputs"]
    assert outputs["compared"] == outputs["all"] - len(TIMED)
    assert min(outputs[sort] for sort in ("weights", "pairs", "metrics")) > 0


# What follows starts no server.


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A project as a run leaves it: weights, a metric, records."""
    outs = []
    for name, text in {
        "artifacts/teacher/0/teacher.safetensors": "weights",
        "artifacts/runs/teacher@0.json": json.dumps({"key": "k", "seconds": 1.5}),
        "metrics/teacher/0.json": json.dumps({"loss": 0.25}),
        "results/seconds.csv": "teacher,1.5",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        outs.append({"path": name, "md5": "0" * 32})
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"teacher@0": {"outs": outs}}}))
    return tmp_path


SPOILED = {
    "nothing": (lambda root: None, [], []),
    "other seconds": (
        lambda root: (root / "artifacts/runs/teacher@0.json").write_text('{"key": "k", "seconds": 9}'),
        [],
        [],
    ),
    "seconds in a list of seconds": (lambda root: (root / "results/seconds.csv").write_text("teacher,9"), [], []),
    "other weights": (
        lambda root: (root / "artifacts/teacher/0/teacher.safetensors").write_text("weighty"),
        [],
        ["artifacts/teacher/0/teacher.safetensors"],
    ),
    "another metric": (
        lambda root: (root / "metrics/teacher/0.json").write_text('{"loss": 0.26}'),
        [],
        ["metrics/teacher/0.json"],
    ),
    "a record of other inputs": (
        lambda root: (root / "artifacts/runs/teacher@0.json").write_text('{"key": "l", "seconds": 1.5}'),
        [],
        ["artifacts/runs/teacher@0.json"],
    ),
    "no metric": (lambda root: (root / "metrics/teacher/0.json").unlink(), ["metrics/teacher/0.json"], []),
    "no outputs": (
        lambda root: shutil.rmtree(root / "artifacts/teacher"),
        ["artifacts/teacher/0/teacher.safetensors"],
        [],
    ),
}


@pytest.mark.parametrize(("spoil", "lost", "stale"), SPOILED.values(), ids=SPOILED.keys())
def test_what_is_missing_is_lost_and_what_differs_stale(left, spoil, lost, stale):
    wanted = fingerprints(left)
    spoil(left)
    assert compare(fingerprints(left), wanted) == (lost, stale)


def test_a_stage_without_a_record_or_a_place_in_the_lock_is_lost(left):
    assert unrecorded(left, ["teacher@0"]) == []
    assert unrecorded(left, ["teacher@0", "report@0"]) == ["report@0"]
    (left / "artifacts/runs/teacher@0.json").unlink()
    assert unrecorded(left, ["teacher@0"]) == ["teacher@0"]


def test_an_object_that_was_not_sent_or_in_part_is_lost():
    assert unsent({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}) == []
    assert unsent({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 1}) == ["b", "c"]


def ran(*steps: int, status: str | None = None, stage: str = "teacher@0") -> Execution:
    return Execution(stage, 0.0, 0.0, steps, status)


HISTORIES = {  # checkpoints at every 20th update, reports at every 5th
    "not killed": ([ran(*range(5, 65, 5), status="FINISHED")], 0, 0),
    "on from the checkpoint": ([ran(*range(5, 35, 5)), ran(25, 30, 35)], 0, 10),
    "killed while it saved": ([ran(5, 10, 15, 20), ran(5, 10)], 0, 10),
    "killed after it saved": ([ran(5, 10, 15, 20), ran(25, 30)], 0, 0),
    "from the beginning": ([ran(*range(5, 35, 5)), ran(5, 10, 15, 20, 25)], 20, 25),
    "from the checkpoint before": ([ran(*range(5, 65, 5)), ran(*range(25, 65, 5))], 20, 40),
    "told to end, and on from there": ([ran(5, 10, 15, status="KILLED"), ran(20, 25)], 0, 0),
    "told to end, and from the beginning": ([ran(5, 10, 15, status="KILLED"), ran(5, 10, 15)], 15, 15),
    "finished, and trained again": ([ran(5, 10, status="FINISHED"), ran(5, 10)], 10, 10),
    "finished, and only written again": ([ran(5, 10, status="FINISHED"), ran(status="FINISHED")], 0, 0),
    "another stage": ([ran(*range(5, 35, 5)), ran(5, 10, stage="features")], 0, 0),
}


@pytest.mark.parametrize(("history", "twice", "again"), HISTORIES.values(), ids=HISTORIES.keys())
def test_only_updates_that_were_saved_count_as_trained_twice(history, twice, again):
    assert sum(each.updates for each in repeats(history, 20, 5)) == twice
    assert redone(history, 5) == again


def test_a_log_that_ends_in_the_middle_of_a_line_is_read_to_there(tmp_path):
    (tmp_path / "teacher@0-20261124T000000-7").mkdir()
    lines = [
        {"kind": "start", "time": 1.0},
        {"kind": "tags", "time": 1.5, "dvc.stage": "teacher@0"},
        {"kind": "metrics", "time": 2.0, "step": 5, "grad_norm": 1.0},
        {"kind": "metrics", "time": 2.5, "step": 0, "seconds": 1.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "metr'
    (tmp_path / "teacher@0-20261124T000000-7" / "log.jsonl").write_text(text)
    assert executions(tmp_path) == [Execution("teacher@0", 1.0, 2.5, (5,), None)]


def test_a_seed_decides_the_kills_and_every_kind_has_its_share(monkeypatch):
    monkeypatch.setattr("benchmarks.chaos.rounds.victims", lambda kind, *_: [] if kind == "flow" else [7])
    drawn = []
    for seed in (0, 0, 1):
        deck = Deck(len(KINDS) + len(TWICE), random.Random(seed))
        drawn.append([deck.draw(Scene(), cast(Any, None), None) for _ in KINDS])
        assert len(deck) == len(TWICE)
    assert drawn[0] == drawn[1] != drawn[2]
    assert "flow" not in [kind for kind, _ in drawn[0]]
