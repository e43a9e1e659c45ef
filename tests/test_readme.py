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
    "inverse regression, one step": "inverse-regression",
}
RIVALS = ("independent", "minibatch-ot", "semidiscrete-ot")


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
    assert set(summary["fd"]) == set(NAMES.values())
    for name, coupling in NAMES.items():
        wanted = [spread(summary["fd"][coupling].get(nfe)) for nfe in nfes]
        kappa = summary["curvature"].get(coupling)
        assert table[name] == [*wanted, f"{fmean(kappa):.3f}" if kappa else "–"]


def spread(values):
    if values is None:
        return "–"
    assert len(values) == 3
    return f"{fmean(values):.2f} ± {stdev(values):.2f}"


def test_the_teachers_figures_in_the_text_are_those_of_results_digits_json():
    summary = json.loads((ROOT / "results" / "digits.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    teacher = summary["teacher"]
    assert f"{teacher['fd_raw']:.2f} raw" in text
    assert f"denoised {teacher['fd_denoised']:.2f}" in text
    assert f"C2ST {summary['coupling']['c2st']:.2f}" in text
    assert f"floor {summary['floor']:.2f}" in text
    seconds = fmean(value for name, value in summary["seconds"].items() if name.startswith("teacher@"))
    assert f"a teacher besides, {seconds:.0f} s of one core" in text


def test_the_table_bears_out_what_the_text_says():
    fd = json.loads((ROOT / "results" / "digits.json").read_text())["fd"]
    mean = {name: {nfe: fmean(values) for nfe, values in by_nfe.items()} for name, by_nfe in fd.items()}
    assert all(mean["teacher"][nfe] < mean[rival][nfe] for rival in RIVALS for nfe in mean[rival])
    one_step = mean["inverse-regression"]["1"]
    assert one_step < mean["teacher"]["1"]
    assert abs(one_step - mean["teacher"]["2"]) < 0.05
    assert all(mean["teacher"][nfe] < one_step for nfe in mean["teacher"] if int(nfe) >= 3)
