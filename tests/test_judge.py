"""Challenger against champion on real images: one yardstick for both, and what cannot be compared."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from nfm.build.student import load_student, make_student, save_student
from nfm.config import Params, parse_params, read_mapping, with_overrides
from nfm.errors import InputError
from nfm.promotion.drift import measure_drift
from nfm.promotion.judge import Candidate, judge
from nfm.stages.features import features
from nfm.stages.prepare import prepare
from nfm.stages.reference import reference
from tests.conftest import ROOT
from tests.students import ARGUMENTS, save_random_student
from tests.tiny import TINY

CPU = torch.device("cpu")
GATE = {
    "promote.nfe": [1, 2],
    "promote.evaluations": 3,
    "promote.samples": 40,
    "promote.margin": 0.0,
    "promote.guards.card": False,
    "promote.guards.accuracy_drop": 1.0,
    "promote.guards.memorisation": 1.0,
}


def params_with(**changes: object) -> Params:
    return parse_params(with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, **GATE, **changes}), "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    """A project with data, features, references and three students of ten classes."""
    root = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "none")
        params = params_with(**{"features.train.steps": 60})
        prepare(root, params)
        features(root, params)
        reference(root, params)
    for seed in range(2):
        save_random_student(root / f"{seed}.safetensors", seed=seed, classes=10)
    untrained = {**ARGUMENTS, "classes": 10}
    save_student(root / "still.safetensors", make_student(untrained), untrained)  # its samples are the noise itself
    return root


def candidate(folder: Path, name: str, **evidence: object) -> Candidate:
    return Candidate(f"version {name}", folder / f"{name}.safetensors", evidence)


def test_the_better_of_two_is_promoted_over_the_other_and_not_the_other_way_round(folder: Path):
    params, (a, b) = params_with(), (candidate(folder, name) for name in ("0", "still"))
    there, back = judge(a, b, folder, params, CPU), judge(b, a, folder, params, CPU)
    assert there.promoted != back.promoted
    ratios = [verdict.figures["test"]["ratio"] for verdict in (there, back)]
    assert ratios[0] * ratios[1] == pytest.approx(1)
    assert (ratios[0] < 1) == there.promoted
    # Measured alike, whichever role it has: the same noise, labels and held-out images.
    assert there.figures["challenger"] == back.figures["champion"]
    assert len(there.figures["challenger"]["fd"]) == 3
    assert there.figures["challenger"]["fd"][0] != there.figures["challenger"]["fd"][1]
    better, worse = (there, back) if there.promoted else (back, there)
    assert "is promoted: its FD at NFE 1, 2 is" in better.reason
    assert "is refused: its FD at NFE 1, 2 is" in worse.reason
    json.dumps([there.figures, back.figures], allow_nan=False)
    # By less than the margin is not better.
    wider = params_with(**{"promote.margin": abs(1 - ratios[0])})
    assert not judge(a, b, folder, wider, CPU).promoted
    assert not judge(b, a, folder, wider, CPU).promoted


def test_a_better_one_that_fails_a_guard_is_refused_with_the_guards_words(folder: Path):
    a, b = (candidate(folder, name, seconds=100.0) for name in "01")
    params = params_with(**{"promote.guards.seconds": 50.0})
    for verdict in (judge(a, b, folder, params, CPU), judge(b, a, folder, params, CPU)):
        assert not verdict.promoted
        assert "it took 100 s to make, expected at most 50 s" in verdict.reason


def test_the_same_weights_are_no_challenger(folder: Path):
    verdict = judge(candidate(folder, "0"), candidate(folder, "0"), folder, params_with(), CPU)
    assert not verdict.promoted
    assert "has the weights of version 0" in verdict.reason


def test_without_a_champion_the_guards_decide(folder: Path):
    assert judge(candidate(folder, "0"), None, folder, params_with(), CPU).promoted
    strict = params_with(**{"promote.guards.seconds": 1.0})
    assert not judge(candidate(folder, "0", seconds=2.0), None, folder, strict, CPU).promoted


def test_one_that_makes_no_numbers_is_refused_and_one_against_such_a_champion_is_not(folder: Path):
    student = load_student(folder / "0.safetensors", CPU).model
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(torch.nan)
    save_student(folder / "nan.safetensors", student, {**ARGUMENTS, "classes": 10})
    broken, whole = candidate(folder, "nan"), candidate(folder, "0")
    verdict = judge(broken, whole, folder, params_with(), CPU)
    assert not verdict.promoted
    assert "240 samples are not finite" in verdict.reason  # 40 in each of 3 evaluations at 2 NFEs
    assert judge(whole, broken, folder, params_with(), CPU).promoted
    json.dumps(verdict.figures, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 9}, "knows 9 classes and version 0, the champion, 10"),
        ({"shape": [1, 16, 16], "patch": [1, 16]}, r"version other makes what has shape \(1, 16, 16\)"),
    ],
)
def test_students_of_other_images_or_classes_are_not_compared(folder: Path, arguments, words):
    save_random_student(folder / "other.safetensors", **{"classes": 10, **arguments})
    with pytest.raises(InputError, match=words):
        judge(candidate(folder, "other"), candidate(folder, "0"), folder, params_with(), CPU)


def test_a_student_of_one_step_is_compared_at_one_evaluation(folder: Path):
    save_random_student(folder / "one.safetensors", classes=10, seed=2, one_step=True)
    verdict = judge(candidate(folder, "one"), candidate(folder, "0"), folder, params_with(), CPU)
    assert verdict.figures["nfe"] == [1]
    with pytest.raises(InputError, match=r"promote\.nfe is \[2\]"):
        judge(candidate(folder, "one"), candidate(folder, "0"), folder, params_with(**{"promote.nfe": [2]}), CPU)


def test_drift_is_nothing_for_the_same_images_and_shows_what_others_have(folder: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_TRACKER", "none")
    same = measure_drift(folder, folder, params_with(), CPU)
    assert same is not None
    assert same.fd == pytest.approx(0, abs=1e-6)
    assert same.floor > 0.01
    assert same.shift == pytest.approx((0, 0), abs=1e-5)
    assert same.spread == pytest.approx((1, 1), abs=1e-5)
    assert sum(new for _, new in same.balance.values()) == pytest.approx(1)
    # Shuffled labels: the same images, which the old classifier calls by their old names.
    prepare(tmp_path, params_with())
    labels = tmp_path / "artifacts" / "data" / "train" / "labels.i64"
    before = torch.frombuffer(bytearray(labels.read_bytes()), dtype=torch.int64)
    after = before[torch.randperm(len(before), generator=torch.Generator().manual_seed(0))]
    labels.write_bytes(after.numpy().tobytes())
    poisoned = measure_drift(folder, tmp_path, params_with(), CPU)
    assert poisoned is not None
    assert poisoned.fd == pytest.approx(0, abs=1e-6)
    assert poisoned.balance == same.balance
    assert poisoned.accuracy[1] < 0.3 < same.accuracy[1]
    assert json.loads(json.dumps(poisoned.content, allow_nan=False))["images"] == [1257, 1257]
    assert {"what", "old", "new"} == set(poisoned.table[0])
    assert yaml.safe_load(json.dumps(poisoned.table))
