"""What a student cost: every second is charged once, and nothing that was not read is given a number."""

from pathlib import Path
from typing import Any

import pytest

from nfm.cost import Rates, enough, of_stages, of_students, pays_after, price
from nfm.energy import Meter
from nfm.figures import Payback, Spent, fd_against_cost, payback
from nfm.report.cost import cost_by_student

RATES = Rates(0.36, {"H100": 3.6, "NVIDIA H100 NVL": 7.2}, "EUR")
KINDS = {"independent": "independent", "teacher": "teacher", "inverse-regression": "inverse-regression"}
SECONDS = {
    "couple@independent-0": 1.0,
    "student@independent-0": 10.0,
    "teacher@0": 100.0,
    "couple-teacher@0": 20.0,
    "student@teacher-0": 11.0,
    "couple-one-step@inverse-regression-0": 2.0,
    "student@inverse-regression-0": 12.0,
}


def records(**more: Any) -> dict[str, dict[str, Any]]:
    return {stage: {"seconds": value, "device": "cpu", **more} for stage, value in SECONDS.items()}


def test_the_seconds_of_all_students_are_those_of_the_stages_each_charged_once():
    found = of_students(of_stages(records(), RATES), KINDS, [0], RATES)
    assert sum(cost["seconds"] for cost in found.values()) == pytest.approx(sum(SECONDS.values()))
    assert {name: cost["before_seconds"] for name, cost in found.items()} == pytest.approx(
        {"independent": 1.0, "teacher": 60.0, "inverse-regression": 62.0}
    )
    assert found["teacher"]["money"] == pytest.approx(71.0 / 3600 * 0.36)


def test_a_coupling_that_alone_learns_from_the_teacher_is_charged_all_of_it():
    found = of_students(of_stages(records(), RATES), {"teacher": "teacher"}, [0], RATES)
    assert found["teacher"]["seconds"] == pytest.approx(131.0)


def test_several_seeds_are_a_mean():
    both = records() | {stage.replace("0", "1"): {"seconds": 3 * s, "device": "cpu"} for stage, s in SECONDS.items()}
    found = of_students(of_stages(both, RATES), {"teacher": "teacher"}, [0, 1], RATES)
    assert found["teacher"]["seconds"] == pytest.approx(2 * 131.0)


def test_what_is_not_known_is_absent_and_never_nothing():
    stages = of_stages(records() | {"teacher@0": {"seconds": 100.0, "device": "Some GPU"}}, RATES)
    found = of_students(stages, KINDS, [0], RATES)
    assert "money" in found["independent"]
    assert "money" not in found["teacher"]  # its teacher ran on what has no rate
    assert "joules" not in stages["teacher@0"]
    assert not any("joules" in cost for cost in found.values())
    assert "teacher" not in of_students(of_stages({}, RATES), KINDS, [0], RATES)


def test_the_rate_is_that_of_the_device_and_the_longest_name_counts():
    hour = {"seconds": 3600.0}
    assert price({**hour, "device": "cpu"}, RATES) == pytest.approx(0.36)
    assert price({**hour, "device": "cpu", "threads": 4}, RATES) == pytest.approx(1.44)
    assert price({**hour, "device": "NVIDIA H100 80GB HBM3"}, RATES) == pytest.approx(3.6)
    assert price({**hour, "device": "NVIDIA H100 NVL"}, RATES) == pytest.approx(7.2)
    assert price({**hour, "device": "NVIDIA A100"}, RATES) is None
    assert price({**hour, "device": "cpu"}, Rates(None, {}, "EUR")) is None


def test_a_student_has_paid_for_its_teacher_when_both_have_cost_the_same():
    n = pays_after(120.0, 0.005, 0.001)
    assert n is not None
    assert n * 0.005 == pytest.approx(120.0 + n * 0.001)
    assert pays_after(120.0, 0.001, 0.001) is None
    assert pays_after(120.0, 0.001, 0.002) is None


def test_the_fewest_evaluations_that_are_good_enough_else_the_best():
    fd = {"1": [5.0], "2": [2.0], "15": [1.0], "31": [1.1]}
    assert [enough(fd, wanted) for wanted in (6.0, 2.0, 1.05, 0.5)] == ["1", "2", "15", "15"]


def test_joules_are_what_the_packages_have_counted_also_over_the_end_of_the_counter(tmp_path: Path):
    for name, joules in (("intel-rapl:0", 10), ("intel-rapl:1", 90), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{joules * 10**6}\n")
        (tmp_path / name / "max_energy_range_uj").write_text(f"{100 * 10**6}\n")
    meter = Meter(powercap=tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text(f"{12 * 10**6}\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text(f"{3 * 10**6}\n")
    assert meter.read() == {"cpu": 15.0}


def test_a_machine_without_counters_has_no_joules(tmp_path: Path):
    assert Meter(powercap=tmp_path).read() == {}
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # as unreadable as without root
    assert Meter(powercap=tmp_path).read() == {}


def test_the_reports_table_has_the_distance_beside_the_cost():
    cost = {"before_seconds": 60.0, "seconds": 71.0, "money": 0.5, "currency": "EUR"}
    paid = cost | {"pays_after_nfe": 2, "pays_after": 120000.0}
    summary = {
        "features": "64 of a classifier",
        "fd": {"independent": {"1": [7.0], "2": [4.0]}, "teacher": {"1": [2.0], "2": [1.5]}},
        "cost": {"student": {"independent": cost | {"before_seconds": 0.0}, "teacher": paid}},
    }
    page = cost_by_student(summary)
    for words in ("<td>71 s</td>", "0.5 EUR", "1.50", "120,000 samples (NFE 2)"):
        assert words in page
    assert "energy" not in page
    never = cost_by_student(summary | {"cost": {"student": {"teacher": paid | {"pays_after": None}}}})
    assert "never (NFE 2)" in never


def test_lines_of_time_cross_where_a_student_has_paid_for_its_teacher(tmp_path: Path):
    before, own, student = 60.0, 3e-3, 1e-3
    after = pays_after(before, own, student)
    assert after is not None
    assert own * after == pytest.approx(before + student * after)
    paid, never = (Payback("NFM", "teacher", 2, before, student, n) for n in (after, None))
    assert (
        "NFM at NFE 2 has paid after 30,000 samples, with 60 s before it"
        in payback(own, [paid], tmp_path / "a.svg").alt
    )
    assert "NFM at NFE 2 has never paid" in payback(own, [never], tmp_path / "b.svg").alt


def test_distance_is_drawn_against_training_and_sampling_by_nfe_in_order(tmp_path: Path):
    one = Spent("NFM", "teacher", {31: 1.0, 1: 2.0}, 60.0, {1: 1e-3, 31: 2e-2})
    assert list(one.cost.items()) == [(1, 110.0), (31, 1060.0)]
    figure = fd_against_cost([one], tmp_path / "cost.svg", metric="FID")
    assert figure.alt.endswith("NFM 2.00 for 110 s at NFE 1 and 1.00 for 1,060 s at NFE 31.")
    assert "prefers-color-scheme: dark" in figure.path.read_text()
