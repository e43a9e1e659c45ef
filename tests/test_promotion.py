"""Whether a challenger becomes champion: the test, the guards, the record, and one decision at a time."""

import json
import math
import multiprocessing
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from flows.seen import MARK, Seen, digest_of, last_seen, leave_mark
from nfm.config import Guards
from nfm.errors import InputError
from nfm.promotion import record
from nfm.promotion.decide import Desk, force, promote, rollback
from nfm.promotion.evidence import gather
from nfm.promotion.guards import check_guards, nearness
from nfm.promotion.paired import differences, paired_test
from nfm.promotion.watch import list_data
from tests.command import nfm
from tests.conftest import ROOT

NAME = "nfm-digits"
GUARDS = Guards(card=True, accuracy_drop=0.05, memorisation=0.7, seconds=100.0)
GOOD = {"has_card": True, "card": {"passed": True, "line": "c2st is 0.5"}, "seconds": 90.0, "accuracy": 0.9}


# The test


def test_the_differences_are_means_over_nfe_of_logs_of_ratios():
    d = differences([[1.0, 8.0], [1.0, 1.0]], [[2.0, 1.0], [1.0, 4.0]])
    assert d == pytest.approx([(math.log(0.5) + math.log(8)) / 2, math.log(0.25) / 2])


@pytest.mark.parametrize("margin", [0.0, 1 - math.exp(-0.1)])
def test_t_and_p_are_those_of_students_law_with_two_degrees_of_freedom(margin):
    found = paired_test([-0.1, -0.2, -0.3], margin)
    t = (-0.2 - math.log(1 - margin)) / (0.1 / math.sqrt(3))
    # Its distribution function is elementary there.
    assert found.t == pytest.approx(t)
    assert found.p == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))
    assert found.ratio == pytest.approx(math.exp(-0.2))


def test_one_that_is_better_by_the_margin_and_no_more_passes_as_often_as_alpha_says():
    draws = np.random.default_rng(0).normal(math.log(0.95), 0.03, (4000, 5))
    passed = np.mean([paired_test(d, 0.05).p < 0.05 for d in draws.tolist()])
    assert passed == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_without_spread_and_without_a_number_the_answer_is_still_one():
    assert paired_test([-0.5] * 3, 0.05).p == 0
    assert paired_test([0.0] * 3, 0.0).p == 1
    assert paired_test([-math.inf] * 3, 0.05).p == 0  # the champion makes nothing that could be measured
    assert paired_test([-0.5, math.inf, -0.5], 0.05).p == 1
    assert paired_test([-0.5, math.nan, -0.5], 0.05).p == 1
    with pytest.raises(ValueError, match="at least 3"):
        paired_test([-0.1, -0.1], 0.0)


# The guards


def test_copies_are_nearest_samples_of_the_same_law_as_near_as_held_out_ones_and_noise_is_far():
    draw = torch.Generator().manual_seed(0)
    train, held_out, fresh = (torch.randn(n, 6, generator=draw) for n in (500, 300, 400))
    assert nearness(train[:200], held_out, train) == 1
    assert nearness(held_out, held_out, train) == pytest.approx(0.5)
    assert nearness(fresh, held_out, train) == pytest.approx(0.5, abs=0.1)
    assert nearness(10 * fresh, held_out, train) < 0.1
    half = torch.cat([train[:100], 10 * fresh[:100]])
    assert nearness(half, held_out, train) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "failing", "words"),
    [
        ({}, None, ""),
        ({"broken": 2}, "finite", "2 samples are not finite"),
        ({"evidence": {**GOOD, "card": {"passed": False, "line": "c2st is 0.9"}}}, "card", "c2st is 0.9"),
        ({"evidence": {**GOOD, "card": None}}, "card", "not known"),
        ({"evidence": {**GOOD, "card": None, "has_card": False}}, None, ""),
        ({"accuracy": (0.80, 0.86)}, "accuracy", "falls from 0.860 to 0.800"),
        ({"accuracy": (0.82, 0.86)}, None, ""),
        ({"accuracy": (None, 0.86)}, None, ""),
        ({"evidence": {**GOOD, "accuracy": 0.5}}, "features", "falls from 0.900 to 0.500"),
        ({"near": 0.71}, "memorisation", "0.71 of samples"),
        ({"near": 0.69}, None, ""),
        ({"evidence": {**GOOD, "seconds": 101.0}}, "seconds", "took 101 s"),
        ({"evidence": {**GOOD, "seconds": None}}, "seconds", "not known"),
    ],
)
def test_each_guard_fails_for_its_own_reason_alone(changes, failing, words):
    given = {"evidence": GOOD, "before": GOOD, "broken": 0, "accuracy": (0.9, 0.9), "near": 0.5, **changes}
    failed = [guard for guard in check_guards(GUARDS, **given) if not guard.passed]
    assert [guard.name for guard in failed] == ([failing] if failing else [])
    assert all(words in guard.line for guard in failed)


def test_a_student_is_charged_for_its_teacher_and_its_coupling(tmp_path):
    from nfm.config import load_params

    params = load_params(ROOT / "params.yaml")
    runs = tmp_path / "artifacts" / "runs"
    runs.mkdir(parents=True)
    for number, stage in enumerate(["teacher@0", "couple-teacher@0", "student@teacher-0", "couple@minibatch-ot-0"]):
        (runs / f"{stage}.json").write_text(json.dumps({"seconds": 10**number}))
    card = tmp_path / "metrics" / "couple" / "teacher-0.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"gate": {"passed": False, "line": "x"}}))
    found = gather(tmp_path, params, "teacher", 0)
    assert (found["seconds"], found["card"]["passed"], found["has_card"]) == (111, False, True)
    plain = gather(tmp_path, params, "minibatch-ot", 0)
    assert (plain["seconds"], plain["card"], plain["has_card"]) == (None, None, False)  # no record of its student


# The decision


@dataclass
class Fake:
    """A registry in memory."""

    aliases: dict[str, int | None]
    count: int = 3
    tags: dict[int, dict[str, str]] = field(default_factory=dict)
    kept: dict[str, dict] = field(default_factory=dict)

    def versions(self, name):
        return [_Version(name, n, tuple(a for a, of in self.aliases.items() if of == n), self.tags.get(n, {}))
                for n in range(1, self.count + 1)]  # fmt: skip

    def find(self, name, ref):
        return next(v for v in self.versions(name) if ref in (*v.aliases, str(v.number)))

    def move(self, name, aliases):
        self.aliases |= aliases

    def tag(self, version, tags):
        self.tags.setdefault(version.number, {}).update(tags)

    def attach(self, version, path, content):
        assert path not in self.kept
        self.kept[path] = content
        return True


@dataclass(frozen=True)
class _Version:
    name: str
    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str | None = None


@dataclass(frozen=True)
class Says:
    promoted: bool
    reason: str = "its FD is 0.5 times"
    figures: dict = field(default_factory=lambda: {"p": 0.01})


def desk(root, registry):
    def clock():
        ticks.append(0)
        return datetime(2026, 1, 1, tzinfo=UTC).replace(microsecond=len(ticks))

    ticks = []
    return Desk(registry, NAME, root, clock)


def test_a_promotion_moves_three_aliases_and_is_written_in_three_places(tmp_path):
    registry = Fake({"champion": 1})
    entry = promote(desk(tmp_path, registry), "2", lambda new, old: Says((new.number, old.number) == (2, 1)))
    assert registry.aliases == {"champion": 2, "previous": 1, "challenger": None}
    (line,) = record.read(tmp_path)
    assert line == entry.content
    assert (line["action"], line["version"], line["champion_before"], line["figures"]) == (
        "promoted",
        2,
        1,
        {"p": 0.01},
    )
    assert list(registry.kept.values()) == [line]
    assert list(registry.tags) == [2]
    assert list(registry.tags[2].values()) == ["promoted: its FD is 0.5 times"]


def test_a_refusal_leaves_the_champion_and_is_written_down_too(tmp_path):
    registry = Fake({"champion": 1})
    at = desk(tmp_path, registry)
    for _ in range(2):
        assert promote(at, "2", lambda new, old: Says(False)).action == "refused"
    assert registry.aliases == {"champion": 1, "challenger": 2}
    assert [line["action"] for line in record.read(tmp_path)] == ["refused", "refused"]
    assert len(registry.kept) == len(registry.tags[2]) == 2


def test_what_cannot_be_compared_moves_no_alias_and_writes_nothing(tmp_path):
    registry = Fake({"champion": 1})

    def refuse(new, old):
        raise InputError("other classes")

    with pytest.raises(InputError, match="other classes"):
        promote(desk(tmp_path, registry), "2", refuse)
    assert (registry.aliases, registry.tags, list(record.read(tmp_path))) == ({"champion": 1}, {}, [])


def test_a_champion_made_elsewhere_while_one_is_judged_is_judged_against(tmp_path):
    registry, seen = Fake({"champion": 1}), []

    def judge(new, old):
        seen.append(old.number)
        if len(seen) == 1:
            registry.aliases["champion"] = 3
        return Says(True)

    entry = promote(desk(tmp_path, registry), "2", judge)
    assert (seen, entry.champion, registry.aliases["previous"]) == ([1, 3], 3, 3)

    def restless(new, old):
        registry.aliases["champion"] = 1 if old.number == 3 else 3
        return Says(True)

    registry.aliases = {"champion": 1}
    with pytest.raises(InputError, match="changed 3 times"):
        promote(desk(tmp_path, registry), "2", restless)


def test_the_first_version_is_recorded_once_and_a_champion_is_not_judged(tmp_path):
    registry = Fake({"champion": 1}, count=1)
    at = desk(tmp_path, registry)
    assert [promote(at, "1", lambda *_: Says(True)).action for _ in range(2)] == ["first", "unchanged"]
    assert [line["action"] for line in record.read(tmp_path)] == ["first"]


def test_a_forced_promotion_and_a_rollback_say_why(tmp_path):
    registry = Fake({"champion": 1})
    at = desk(tmp_path, registry)
    force(at, "3", "the old one shows a watermark")
    assert registry.aliases["champion"] == 3
    with pytest.raises(InputError, match="champion already"):
        force(at, "3", "again")
    entry = rollback(at, "it was no watermark")
    assert (entry.version, entry.champion) == (1, 3)
    assert registry.aliases == {"champion": 1, "previous": None, "challenger": None}
    with pytest.raises(InputError, match="no version with the alias 'previous'"):
        rollback(at, "further back")
    assert [(line["action"], line["reason"]) for line in record.read(tmp_path)] == [
        ("forced", "the old one shows a watermark"),
        ("rolled back", "it was no watermark"),
    ]


def _hold(root, entered, leave):
    with record.only_one(root):
        entered.set()
        leave.wait(60)


def test_a_second_decision_waits_for_the_first_even_from_another_folder_of_the_same_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    context = multiprocessing.get_context("fork")
    held, leave, second = (context.Event() for _ in range(3))
    done = context.Event()
    done.set()
    first = context.Process(target=_hold, args=(tmp_path / "a", held, leave))
    other = context.Process(target=_hold, args=(tmp_path / "b", second, done))
    first.start()
    assert held.wait(60)
    other.start()
    assert not second.wait(0.3)
    first.kill()  # the lock ends with its process
    assert second.wait(60)
    first.join()
    other.join()


def test_a_line_that_a_kill_has_cut_spoils_no_other(tmp_path):
    entry = record.Entry("refused", NAME, 2, 1, "why", datetime(2026, 1, 1, tzinfo=UTC))
    record.append(tmp_path, entry)
    with (tmp_path / record.FILE).open("a") as file:
        file.write('{"action": "prom')
    record.append(tmp_path, replace(entry, version=3))
    assert [line["version"] for line in record.read(tmp_path)] == [2, 3]


# What is new


def test_a_listing_changes_with_names_sizes_and_times_and_not_with_hidden_files(tmp_path):
    places = {"data.folder": "images"}
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_text(name)
    seen = [list_data(places, tmp_path)]
    assert (seen[0].count, seen[0].bytes) == (3, 21)
    (tmp_path / "images" / ".notes").write_text("x")
    assert list_data(places, tmp_path) == seen[0]
    path = tmp_path / "images" / "a" / "1.png"
    os.utime(path, ns=(0, 0))
    seen.append(list_data(places, tmp_path))
    path.rename(path.with_name("3.png"))
    seen.append(list_data(places, tmp_path))
    path.with_name("3.png").write_text("longer than before")
    seen.append(list_data(places, tmp_path))
    assert len({listing.digest for listing in seen}) == len(seen)
    for place, words in (("none", "no folder"), (".empty", "holds no file")):
        (tmp_path / ".empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=words):
            list_data({"data.folder": place}, tmp_path)


def test_a_prefix_that_grew_is_seen_in_the_store(bucket, tmp_path, monkeypatch):
    import boto3

    for key, value in bucket.items():
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3" if key == "ADDRESS" else key, value)
    client = boto3.client("s3")
    for number in range(2):
        client.put_object(Bucket="store", Key=f"grows/a/{number}.png", Body=b"x")
    places = {"data.folder": "s3://store/grows"}
    before = list_data(places, tmp_path)
    assert before == list_data(places, tmp_path)
    client.put_object(Bucket="store", Key="grows/a/0.png", Body=b"y")  # as long as before
    after = list_data(places, tmp_path)
    assert (after.count, after.bytes) == (before.count, before.bytes) == (2, 2)
    assert after.digest != before.digest
    with pytest.raises(InputError, match=r"data\.folder is s3://missing/x, which the store does not list"):
        list_data({"data.folder": "s3://missing/x"}, tmp_path)


def test_other_params_are_a_reason_to_retrain_and_another_machine_or_rate_is_none(tmp_path):
    params = {"student": {"width": 1}, "promote": {"alpha": 0.05}, "run": {"log_every": 1}, "infra": {}, "cost": {}}
    mark = Seen("data", digest_of(params), ".", "today", "promoted")
    leave_mark(tmp_path, mark)
    assert last_seen(tmp_path) == mark
    elsewhere = {**params, "run": {"log_every": 2}, "infra": {"teacher": "gpu-pool"}, "cost": {"cpu_hour": 1.0}}
    assert Seen("data", digest_of(elsewhere), "").same(mark)
    for key in ("student", "promote"):
        assert not Seen("data", digest_of({**params, key: {}}), "").same(mark)
    assert not Seen("grown", mark.params, "").same(mark)
    assert not mark.same(None)
    (tmp_path / MARK).write_text("{")
    assert last_seen(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [MARK]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "--force"], "--force needs --reason TEXT"),
        (["promote", "--force", "--reason", " "], "--force needs --reason TEXT"),
        (["promote", "--reason", "x"], "--reason goes with --force"),
        (["promote"], "there is no model 'nfm-digits'"),
        (["promote", "--model", "nfm-cats", "7"], "there is no model 'nfm-cats'"),
        (["rollback"], "no version with the alias 'previous'"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_no_database(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert nfm(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / record.FILE).exists()
