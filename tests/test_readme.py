"""The README's numbers are those of the files that the pipeline wrote."""

import json
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).parents[1]
NAMES = {
    "independent (FM)": "independent",
    "minibatch OT, within class": "minibatch-ot",
    "semidiscrete OT, per class": "semidiscrete-ot",
    "teacher (NFM)": "teacher",
}


def rows():
    """The table's cells by the name in its first column."""
    lines = (ROOT / "README.md").read_text().splitlines()
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {first: rest for first, *rest in cells}


def test_the_results_table_is_that_of_results_digits_json():
    summary = json.loads((ROOT / "results" / "digits.json").read_text())
    table = rows()
    nfes = table["digits, NFE"][:-1]
    assert nfes == ["1", "2", "3", "4", "5", "7", "15", "31"]
    for name, coupling in NAMES.items():
        fd = [summary["fd"][coupling][nfe] for nfe in nfes]
        assert all(len(values) == 3 for values in fd)
        wanted = [f"{fmean(values):.2f} ± {stdev(values):.2f}" for values in fd]
        assert table[name] == [*wanted, f"{fmean(summary['curvature'][coupling]):.3f}"]


def test_the_teachers_figures_in_the_text_are_those_of_results_digits_json():
    summary = json.loads((ROOT / "results" / "digits.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    teacher = summary["teacher"]
    assert f"denoised {teacher['fd_denoised']:.2f}" in text
    assert f"C2ST {summary['coupling']['c2st']:.2f}" in text
    assert f"floor {summary['floor']:.2f}" in text


def test_the_table_bears_out_that_nfm_is_ahead_at_few_evaluations():
    fd = json.loads((ROOT / "results" / "digits.json").read_text())["fd"]
    mean = {name: {nfe: fmean(values) for nfe, values in by_nfe.items()} for name, by_nfe in fd.items()}
    rivals = ("independent", "minibatch-ot", "semidiscrete-ot")
    assert all(mean["teacher"][nfe] < mean[rival][nfe] for rival in rivals for nfe in ("1", "2"))
