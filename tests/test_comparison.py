"""Runs and revisions side by side: the same figures wherever they are read, and no claim that seeds do not bear out."""

import csv
import json
import re
import shutil
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from nfm.comparison.significance import differences, holm, welch
from nfm.comparison.subject import from_summary
from nfm.comparison.table import FORMATS, rows_of
from tests.command import nfm
from tests.conftest import ROOT, shell

FD = {
    "independent": {"1": [7.0, 7.2, 7.1], "5": [2.0, 2.3, 1.7]},
    "teacher": {"1": [2.0, 2.1, 1.9], "5": [1.9, 2.2, 1.8]},
}


def summary_of(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": "digits",
        "metric": "fd_digits_1k",
        "samples": 1000,
        "test_images": 540,
        "train_images": 1257,
        "floor": 0.5626,
        "fd": FD,
        "curvature": {"independent": [0.08, 0.09, 0.08], "teacher": [0.02, 0.02, 0.02]},
        "seconds": {"couple@independent-0": 1.0, "student@independent-0": 30.0},
    } | changes


def worse(factor: float) -> dict[str, Any]:
    return {c: {n: [factor * v for v in values] for n, values in by_nfe.items()} for c, by_nfe in FD.items()}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a summary at each of two commits, and a third that is not committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for factor in (3.0, 2.0):
        write(tmp_path, summary_of(fd=worse(factor)))
        subprocess.run(["git", "add", "--all"], check=True)
        subprocess.run(["git", "commit", "--quiet", "--message", f"times {factor}"], check=True)
    write(tmp_path, summary_of())
    return tmp_path


def write(folder: Path, summary: dict[str, Any], name: str = "results/summary.json") -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(summary))


def compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    assert nfm(monkeypatch, "compare", *words, "--format", "csv") == 0
    return list(csv.DictReader(StringIO(capsys.readouterr().out)))


# The test


def test_the_p_value_is_scipys():
    draw = np.random.default_rng(0).normal
    for sizes in ((3, 3), (3, 5), (2, 8)):
        ours, theirs = (list(draw(shift, 1 + shift, n)) for shift, n in enumerate(sizes))
        assert welch(ours, theirs) == pytest.approx(ttest_ind(ours, theirs, equal_var=False).pvalue, rel=1e-9)


def test_values_without_any_spread_differ_surely_or_not_at_all():
    assert welch([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0.0


def test_seeds_of_one_distribution_are_seldom_told_apart_at_any_nfe():
    draw = np.random.default_rng(1).normal
    false = 0
    for _ in range(400):
        ours, theirs = ({nfe: list(draw(0, 1, 3)) for nfe in range(8)} for _ in range(2))
        false += any(found.exceeds for found in differences(ours, theirs).values())
    assert false / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5  # without Holm's correction about a third


def test_holms_adjustment_is_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_one_seed_is_no_evidence_whatever_the_difference():
    found = differences({1: [1.0]}, {1: [50.0, 50.1, 50.2]})[1]
    assert (found.exceeds, found.verdict) == (None, "one seed: no spread")


# The table


def test_a_difference_beyond_the_noise_of_seeds_is_told_from_one_within_it():
    first, second = rows_of([from_summary("a", summary_of())])
    assert second.baseline == ("a", "independent")
    assert {nfe: found.verdict for nfe, found in second.against.items()} == {1: "better", 5: "within seed noise"}
    assert (first.verdict, second.verdict) == ("baseline", "better at NFE 1")


def test_another_run_is_held_against_the_same_coupling_of_the_first():
    other = summary_of(fd=worse(2.0))
    rows = rows_of([from_summary("a", summary_of()), from_summary("b", other)])
    assert [row.baseline for row in rows] == [None, ("a", "independent"), ("a", "independent"), ("a", "teacher")]
    assert rows[3].against[1].value == pytest.approx(2.0)
    assert rows[3].verdict.startswith("worse at NFE 1")


def said_by_dvc(*words: str) -> dict[str, Any]:
    """What DVC answers, without what it says of metrics and plots that are not there."""
    return json.loads(re.search(r"^{.*}$", shell(["dvc", *words, "--json"], Path.cwd()), re.MULTILINE)[0])


def test_dvcs_diffs_show_the_same_figures(tmp_path: Path, monkeypatch, capsys):
    """Of the graph of this repository, at a commit and after it."""
    for name in ("dvc.yaml", "params.yaml", "results/summary.json", "results/fd.csv", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "before"]):
        subprocess.run(["git", *command], check=True)
    before = json.loads((tmp_path / "results/summary.json").read_text())
    after = json.loads((tmp_path / "results/summary.json").read_text())
    after["fd"]["teacher"]["5"] = [2 * value for value in before["fd"]["teacher"]["5"]]
    after["mean"]["fd"]["teacher"]["5"] = 2 * before["mean"]["fd"]["teacher"]["5"]
    write(tmp_path, after)
    text = (tmp_path / "results/fd.csv").read_text()
    mean = str(before["mean"]["fd"]["teacher"]["5"])
    assert text.count(mean) == 1
    (tmp_path / "results/fd.csv").write_text(text.replace(mean, str(after["mean"]["fd"]["teacher"]["5"])))

    rows = compared(monkeypatch, capsys, "git:HEAD", "results/summary.json")
    ours = [float(row["fd"]) for row in rows if (row["coupling"], row["nfe"]) == ("teacher", "5")]
    (metrics,) = said_by_dvc("metrics", "diff").values()
    assert set(metrics) == {"mean.fd.teacher.5"}
    assert [metrics["mean.fd.teacher.5"][side] for side in ("old", "new")] == pytest.approx(ours)
    drawn = said_by_dvc("plots", "diff", "HEAD")["data"]["FD by NFE"]
    points = [point for each in drawn for point in each["content"]["data"]["values"]]
    found = {p["rev"]: float(p["teacher"]) for p in points if (p["nfe"], p["field"]) == ("5", "teacher")}
    assert [found["HEAD"], found["workspace"]] == pytest.approx(ours)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_shows_the_mean_the_spread_and_the_verdict(kind: str):
    text = FORMATS[kind](rows_of([from_summary("a", summary_of())]), "fd_digits_1k")
    shown = ("2.0,0.1", "better") if kind == "csv" else ("2.00 ± 0.10 ↓", "better at NFE 1")
    assert "fd_digits_1k" in text
    for words in shown:
        assert words in text.replace("0.10000000000000009", "0.1")


def test_what_a_run_is_called_cannot_break_the_page_or_the_table():
    rows = rows_of([from_summary("<b>|</b>", summary_of())])
    assert "<b>" not in FORMATS["html"](rows, "fd")
    assert "<b>\\|</b>" in FORMATS["markdown"](rows, "fd")


def test_a_page_has_a_figure_of_distance_against_what_is_known_of_cost():
    student = {"seconds": 60.0, "before_seconds": 50.0, "currency": "EUR", "seconds_per_image": {"1": 1e-3, "5": 4e-3}}
    page = FORMATS["html"](rows_of([from_summary("a", summary_of(cost={"student": {"teacher": student}}))]), "fd")
    (alt,) = re.findall(r'<img src="data:image/svg[^"]*" alt="([^"]*)"', page)
    assert "NFM 2.00 for 110 s at NFE 1 and 1.97 for 260 s at NFE 5" in alt  # 60 s and 50,000 samples
    assert "FM 7.10 for 31 s at NFE 1 and 2.00 for 31 s at NFE 5" in alt  # whose sampling nobody has timed
    assert "A vertical line is training alone" in page
    assert "<img" not in FORMATS["html"](rows_of([from_summary("a", summary_of(seconds={}))]), "fd")


# What words stand for


def test_a_revision_is_read_as_committed_and_a_file_as_it_is(project, monkeypatch, capsys):
    rows = compared(monkeypatch, capsys, "HEAD~1", "HEAD", "results/summary.json")
    means = {row["run"]: float(row["fd"]) for row in rows if row["coupling"] == "teacher" and row["nfe"] == "1"}
    assert means == pytest.approx({"HEAD~1": 6.0, "HEAD": 4.0, "results/summary.json": 2.0})


def test_without_words_the_folder_is_compared_with_its_commit(project, monkeypatch, capsys):
    assert {row["run"] for row in compared(monkeypatch, capsys)} == {"HEAD", "results/summary.json"}
    write(project, summary_of(fd=worse(2.0)))
    assert {row["run"] for row in compared(monkeypatch, capsys)} == {"results/summary.json"}


def test_the_output_file_has_the_format_of_its_ending(project, monkeypatch, capsys):
    assert nfm(monkeypatch, "compare", "HEAD", "--output", "table.md") == 0
    assert "| run | coupling |" in (project / "table.md").read_text()


BAD = {
    "another yardstick": (summary_of(samples=500, metric="fd_digits_500"), ["HEAD", "other.json"], "was measured with"),
    "other features": (summary_of(floor=0.61), ["HEAD", "other.json"], "was measured with floor '0.61'"),
    "no summary": ({"teacher": 1}, ["other.json"], "other.json is no summary"),
    "unknown word": ({}, ["nowhere"], "'nowhere' is no file, git revision, MLflow run or experiment"),
    "unknown run": ({}, ["0123456789abcdef" * 2], "known at sqlite:///"),
    "unknown revision": ({}, ["git:nowhere"], "git:nowhere is no revision of"),
    "unknown experiment": ({}, ["experiment:mine"], "'mine' is no experiment"),
    "unknown format": ({}, ["HEAD", "--format", "pdf"], "--format is 'pdf', expected one of text, csv, markdown, html"),
    "revision without results": ({}, ["empty"], "revision empty has no results/summary.json"),
}


@pytest.mark.parametrize(("content", "words", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_compared_is_one_sentence(project, monkeypatch, capsys, content, words, said):
    write(project, content, "other.json")
    empty = subprocess.run(["git", "hash-object", "-t", "tree", "-w", "/dev/null"], capture_output=True, text=True)
    commit = ["git", "commit-tree", "-m", "nothing", empty.stdout.strip()]
    made = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["git", "branch", "empty", made], check=True)
    assert nfm(monkeypatch, "compare", *words, "--output", "table.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (project / "table.txt").exists()
    assert not (project / "mlflow.db").exists()
