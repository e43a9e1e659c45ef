"""Figures, headline, tables and the page. The numbers are made up in the shape of a run; the pixels are real digits."""

import base64
import csv
import re
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from nfm.figures import COLOURS, SPARE, colours, coupling_diagnostics, fd_curves, paths, sample_grid, spread_over, tile
from nfm.report.assemble import write_report
from nfm.report.csv import write_csvs
from nfm.report.headline import headline
from nfm.report.html import render
from nfm.report.pictures import samples_by_nfe
from nfm.report.tables import duration

NFES = (1, 2, 3, 5, 7, 31)
MADE_UP = {  # means by NFE
    "independent": (30.0, 16.0, 9.0, 6.0, 3.0, 3.2),
    "minibatch-ot": (24.0, 11.0, 7.0, 5.0, 3.1, 3.3),
    "semidiscrete-ot": (16.0, 8.0, 5.5, 4.5, 3.2, 2.9),
    "teacher": (10.0, 6.0, 4.5, 4.0, 3.6, 3.4),
}


COUPLING = {
    "c2st": 0.517,
    "c2st_by_class": {"zero": 0.49, "a<b": 0.561},
    "eigenvalues": [0.61, 1.58],
    "mean_drift": 0.043,
    "variance_drift": 0.067,
    "round_trip": 3.1e-6,
    "sigma": 0.994,
    "gate": [{"passed": True, "line": "c2st is 0.517 ± 0.006, expected at most 0.57"}] * 3,
}


def made_up(couplings=tuple(MADE_UP), seeds=3, **changes):
    """A summary whose seeds lie around the means above."""
    offsets = (-0.04, 0.01, 0.05)[:seeds]
    fd = {
        c: {str(n): [mean * (1 + o) for o in offsets] for n, mean in zip(NFES, MADE_UP[c], strict=True)}
        for c in couplings
    }
    with_teacher = "teacher" in couplings
    seconds = {"prepare": 1.0} | {f"student@{c}-{s}": 30.0 + s for c in couplings for s in range(seeds)}
    return {
        "dataset": "digits",
        "features": "64 features of a classifier",
        "samples": 1000,
        "names": {"recall": "recall_digits_1k"},
        "fd": fd,
        "fd_heun_5": {c: [x * 0.9 for x in v["5"]] for c, v in fd.items()},
        "recall": {c: {n: [1 / x for x in values] for n, values in v.items()} for c, v in fd.items()},
        "curvature": {c: [0.05 + o for o in offsets] for c in couplings},
        "teacher": {"bits_per_dim": 5.4321, "fd_raw": 6.54, "fd_denoised": 3.81, "seconds_per_image": 0.0031}
        if with_teacher
        else None,
        "coupling": COUPLING if with_teacher else None,
        "seconds": seconds | ({f"teacher@{s}": 60.0 for s in range(seeds)} if with_teacher else {}),
        "floor": 1.24,
    } | changes


def digits(couplings):
    """Ten real digits in the place of every setting's samples."""
    images = torch.from_numpy(np.round(load_digits().images[:10] * 255 / 16).astype(np.uint8))
    names = [f"euler-{n}" for n in (1, 2, 3, 5)] + [f"heun-{n}" for n in (5, 7, 31)]
    return {c: dict.fromkeys(names, images[:, None]) for c in couplings}


def straight(couplings):
    t = torch.linspace(1, 0, 9)[:, None, None]
    z, x = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [2.0, 0.5]])
    return dict.fromkeys(couplings, t * z + (1 - t) * x)


def page_of(summary, folder, records=None):
    moments = (torch.zeros(1, 8, 8), torch.ones(1, 8, 8)) if summary["teacher"] else None
    couplings = list(summary["fd"])
    made = {"samples": digits(couplings), "projected": straight(couplings), "moments": moments}
    write_report(summary, folder, records=records, **made)
    return (folder / "index.html").read_text(encoding="utf-8")


def plain_page_of(summary, folder, samples=None):
    """The page without plots, which take seconds to draw."""
    render(summary, folder / "index.html", samples=samples or {}, figures={}, heun=(7, 31))
    return (folder / "index.html").read_text(encoding="utf-8")


class Tables(HTMLParser):
    """The tables of a page, by caption, as rows of cells: text and whether the cell is the best."""

    def __init__(self, page):
        super().__init__()
        self.found, self.rows, self.cell, self.caption = {}, [], None, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.rows, self.caption = [], None
        elif tag == "caption":
            self.caption = ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.cell = ["", ("class", "best") in attrs]

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.rows[-1].append(tuple(self.cell))
            self.cell = None
        elif tag == "table":
            self.found[self.caption] = self.rows

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[0] += data
        elif self.caption is not None and not self.rows:
            self.caption += data


def rows_of(page, start):
    """Rows of the table whose caption starts so, headings of solvers kept."""
    return next(rows for caption, rows in Tables(page).found.items() if caption.startswith(start))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    summary = made_up()
    return summary, folder, page_of(summary, folder)


# The page


def test_every_distance_in_the_table_is_mean_and_deviation_of_the_summary(written):
    summary, _, page = written
    head, *rows = rows_of(page, "FD to the test images")
    assert [text for text, _ in head] == ["NFE", "FM", "minibatch OT", "semidiscrete OT", "NFM"]
    expected = [
        ["Euler"],
        *[["fd", n] for n in ("1", "2", "3", "5")],
        ["Heun"],
        ["heun", "5"],
        ["fd", "7"],
        ["fd", "31"],
    ]
    assert len(rows) == len(expected)
    for row, (kind, *nfe) in zip(rows, expected, strict=True):
        if not nfe:
            assert row == [(kind, False)]
            continue
        values = [summary["fd_heun_5"][c] if kind == "heun" else summary["fd"][c][nfe[0]] for c in MADE_UP]
        assert [text for text, _ in row] == [nfe[0], *[f"{fmean(v):.2f} ± {stdev(v):.2f}" for v in values]]
        lowest = min(map(fmean, values))
        assert [best for _, best in row[1:]] == [fmean(v) == lowest for v in values]


def test_captions_carry_the_full_name_of_the_distance_where_the_summary_has_it(tmp_path):
    summary = made_up(metric="fd_digits_1k") | {"fd_train": made_up()["fd"]}
    page = plain_page_of(summary, tmp_path)
    assert rows_of(page, "FD (fd_digits_1k) to the test images")
    assert rows_of(page, "FD (fd_digits_1k_train) to the training images")
    assert "<dd>FD (fd_digits_1k): Fréchet distance" in page


def test_the_best_of_a_measure_that_should_be_high_is_the_highest(written):
    summary, _, page = written
    row = rows_of(page, "Recall (recall_digits_1k), the share")[2]
    values = [fmean(summary["recall"][c]["1"]) for c in MADE_UP]
    assert [best for _, best in row[1:]] == [value == max(values) for value in values]


def test_one_seed_has_no_spread(tmp_path):
    page = plain_page_of(made_up(seeds=1, coupling=None), tmp_path)
    assert "±" not in page
    assert "one seed" in page


def test_the_page_needs_nothing_but_itself(written):
    page = written[2]
    assert "<script" not in page
    assert "://" not in page
    assert "@import" not in page
    assert "url(" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") or f'id="{source[1:]}"' in page for source in sources)


def test_the_page_opens_with_the_headline_then_the_picture(written):
    summary, _, page = written
    opening = page[page.index("<h1>") : page.index("<img")]
    assert re.sub("<[^>]*>", " ", opening).split()[: len(headline(summary).split())] == headline(summary).split()
    assert page.index('class="picture"') < page.index("<table")


def test_every_image_has_an_alternative_text_and_those_of_plots_have_numbers(written):
    page = written[2]
    assert len(re.findall("<img ", page)) == len(re.findall(r'<img [^>]*alt="[^"]+"', page))
    plots = re.findall(r'class="plot"><img [^>]*alt="([^"]+)"', page)
    assert len(plots) == 3
    assert all(re.search(r"\d\.\d", alt) for alt in plots)


def test_single_figures_of_teacher_and_coupling_are_those_of_the_summary(written):
    page = written[2]
    values = {row[0][0]: row[1][0] for start in ("The noise z", "The teacher's") for row in rows_of(page, start)}
    assert values["C2ST accuracy"] == "0.517"
    assert values["covariance, eigenvalues"] == "0.61 to 1.58"
    assert values["round trip"] == "3.1e-06"
    assert values["C2ST, class a<b"] == "0.561"
    assert values["drift of mean"] == "0.043"
    assert values["drift of variance"] == "0.067"
    assert values["gate"] == "passed"
    assert values["bits per dimension"] == "5.432"
    assert values["FD, denoised"] == "3.81"
    assert values["time per sample"] == "3.1 ms"


def test_a_coupling_outside_its_gate_is_told_with_its_line(tmp_path):
    line = "c2st of class 'a<b' is 0.651 ± 0.017, expected at most 0.57"
    verdicts = [*COUPLING["gate"][:2], {"passed": False, "line": line}]
    page = plain_page_of(made_up(coupling=COUPLING | {"gate": verdicts}), tmp_path)
    (row,) = [row for row in rows_of(page, "The noise z") if row[0][0] == "gate"]
    assert row[1][0] == "outside, allowed"
    assert row[2][0] == line
    assert "a<b" not in (tmp_path / "index.html").read_text()


def test_a_coupling_without_classes_has_no_rows_of_them(tmp_path):
    without = {k: v for k, v in COUPLING.items() if "drift" not in k} | {"c2st_by_class": {}}
    page = plain_page_of(made_up(coupling=without), tmp_path)
    assert not {"drift of mean", "drift of variance"} & {row[0][0] for row in rows_of(page, "The noise z")}


def test_cost_adds_up_the_runs_of_a_stage_and_charges_nfm_with_its_teacher(written):
    page = written[2]
    stages = {row[0][0]: row[1][0] for row in rows_of(page, "Time by stage")}
    assert stages["student"] == "6 min"  # 4 couplings x (30 + 31 + 32) s = 372 s
    assert stages["teacher"] == "3 min"
    cost = {row[0][0]: [text for text, _ in row[1:]] for row in rows_of(page, "Training time")}
    assert cost["NFM"] == ["60 s", "31 s", "91 s"]
    assert cost["FM"] == ["0 s", "31 s", "31 s"]


@pytest.mark.parametrize("couplings", [("independent",), ("teacher",), ("independent", "minibatch-ot")])
def test_a_subset_of_couplings_has_a_page(couplings, tmp_path):
    page = plain_page_of(made_up(couplings), tmp_path)
    assert len(rows_of(page, "FD to the test images")[0]) == 1 + len(couplings)
    assert ("The teacher and its coupling" in page) == ("teacher" in couplings)


def test_a_summary_with_the_least_has_a_page(tmp_path):
    fd = {"mine & yours": {"1": [2.0]}}
    summary = {"dataset": "<b>x</b>", "features": "a <i>net</i>", "samples": 10, "fd": fd}
    page = plain_page_of(summary, tmp_path)
    assert "<b>x" not in page
    assert "<i>net" not in page
    assert escape("<b>x</b>") in page
    assert "mine &amp; yours" in page
    assert "mine & yours" not in page


def test_the_same_run_gives_the_same_bytes(written, tmp_path):
    summary, folder, _ = written
    page_of(summary, tmp_path)
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


# The headline

HEADLINES = {
    "NFM leads at few steps only": (
        {},
        [
            "On digits, NFM reaches FD 10.00 with one network evaluation and 6.00 with two, "
            "where plain flow matching (FM) has 30.00 and 16.00 (one seed).",
            "It is the best of four couplings at NFE 1 to 5; "
            "at NFE 31 semidiscrete OT is best with 2.90, and NFM is behind with 3.40.",
        ],
    ),
    "NFM loses": (
        {"teacher": (40.0, 20.0, 10.0, 9.0, 8.0, 7.0)},
        ["NFM is not ahead of plain flow matching", "40.00", "is best at no NFE measured", "behind with 7.00"],
    ),
    "NFM wins one of two": ({"teacher": (10.0, 17.0, 10.0, 9.0, 8.0, 7.0)}, ["NFM has FD 10.00", "17.00", "30.00"]),
    "NFM leads everywhere": (
        {"teacher": (1.0,) * 6},
        ["best of four couplings at every NFE measured, with 1.00 at NFE 31"],
    ),
    "NFM leads here and there": (
        {"teacher": (1.0, 50, 50, 50, 1.0, 1.0)},
        ["at NFE 1, 7 and 31, with 1.00 at the last"],
    ),
}


@pytest.mark.parametrize(("changes", "words"), HEADLINES.values(), ids=HEADLINES.keys())
def test_the_headline_says_who_is_ahead_and_who_is_behind(changes, words):
    summary = made_up(seeds=1)
    summary["fd"] = {
        c: {str(n): [m] for n, m in zip(NFES, changes.get(c, means), strict=True)} for c, means in MADE_UP.items()
    }
    for word in words:
        assert word in headline(summary)


def test_the_headline_names_what_is_there_when_a_coupling_is_not():
    assert "where semidiscrete OT has" in headline(made_up(("minibatch-ot", "semidiscrete-ot", "teacher")))
    without = headline(made_up(("independent", "semidiscrete-ot")))
    assert "NFM" not in without
    assert "semidiscrete OT, the best of two couplings at NFE 1" in without
    assert headline(made_up(("independent",), seeds=1)).startswith("On digits, FM reaches FD ")


def test_the_distance_is_fid_on_inception_only():
    assert "FID" not in headline(made_up())
    assert "reaches FID" in headline(made_up(features="2048 features of Inception v3"))


def test_no_shared_nfe_is_refused():
    with pytest.raises(ValueError, match="expected at least one coupling"):
        headline(made_up() | {"fd": {}})


# Tables for DVC


def test_csv_files_hold_the_means_of_the_summary(tmp_path):
    summary = made_up()
    write_csvs(summary, tmp_path)
    with (tmp_path / "fd.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["nfe"]) for row in rows] == list(NFES)
    for row in rows:
        for name, values in summary["fd"].items():
            assert float(row[name]) == fmean(values[row["nfe"]])
            assert float(row[f"{name} sd"]) == stdev(values[row["nfe"]])
    with (tmp_path / "seconds.csv").open() as file:
        assert {row["stage"]: float(row["seconds"]) for row in csv.DictReader(file)} == summary["seconds"]


# Figures


def test_tiles_are_the_images_enlarged_in_their_places():
    images = torch.randint(256, (5, 3, 8, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sheet = tile(images, 3, size=16, gap=2)
    assert sheet.shape == (2 * 16 + 2, 3 * 8 + 2 * 2, 4)
    for i, image in enumerate(images):
        y, x = i // 3 * 18, i % 3 * 10
        block = sheet[y : y + 16 : 2, x : x + 8 : 2, :3]
        np.testing.assert_array_equal(block, image.movedim(0, 2).numpy())
        np.testing.assert_array_equal(block, sheet[y + 1 : y + 16 : 2, x + 1 : x + 8 : 2, :3])
    assert (sheet[16:18, :, 3] == 0).all()
    assert (sheet[18:, 20:, 3] == 0).all()


def test_tiles_of_unquantised_images_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32"):
        tile(torch.zeros(2, 1, 8, 8), 2)


def test_images_are_chosen_over_the_whole_range():
    assert spread_over(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert spread_over(torch.arange(3), 6).tolist() == [0, 1, 2]


def test_euler_samples_are_shown_where_both_solvers_have_an_nfe():
    euler, heun = torch.zeros(1), torch.ones(1)
    found = samples_by_nfe({"heun-31": heun, "euler-5": euler, "heun-5": heun, "euler-1": euler})
    assert list(found) == [1, 5, 31]
    assert found[5] is euler


def test_a_grid_shows_the_pixels_of_its_images(tmp_path):
    white, black = torch.full((1, 8, 8), 255, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    sample_grid(
        torch.stack([torch.stack([black, white]), torch.stack([black, black])]), ["a", "b"], [], tmp_path / "g.png"
    )
    pixels = np.asarray(Image.open(tmp_path / "g.png").convert("L"))
    columns = (pixels < 10).mean(0)
    # The left column is black from top to bottom, the right one in its lower half.
    assert columns.max() > 0.8
    assert 0.35 < columns[-30:].max() < 0.55


def test_a_path_around_a_corner_is_longer_than_its_chord_and_one_that_stands_still_is_not(tmp_path):
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])[:, None]
    figure = paths({"independent": corner, "teacher": torch.zeros(3, 1, 2)}, tmp_path / "paths.svg")
    assert figure.alt.endswith("40.0 %; NFM 0.0 %.")


def test_svg_figures_are_well_formed_and_know_the_dark(tmp_path):
    couplings = list(MADE_UP)
    figures = [
        fd_curves(made_up()["fd"], tmp_path / "fd.svg", floor=1.24, teacher=3.8),
        paths(straight(couplings), tmp_path / "paths.svg"),
        coupling_diagnostics(torch.zeros(3, 4, 4), torch.ones(3, 4, 4), tmp_path / "noise.svg"),
    ]
    for figure in figures:
        text = figure.path.read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["fd.svg", "noise.svg", "paths.svg"]
    assert "NFM from 10.07 at NFE 1 to 3.42 at NFE 31" in figures[0].alt
    assert "NFM 0.0 %" in figures[1].alt
    assert "48 dimensions" in figures[2].alt


def test_one_nfe_of_one_coupling_is_a_figure(tmp_path):
    fd_curves({"mine": {"1": [2.0]}}, tmp_path / "fd.png", floor=None)
    assert Image.open(tmp_path / "fd.png").size[0] > 500


def test_a_coupling_keeps_its_colour_in_any_company():
    assert colours(["teacher", "mine"])["teacher"] == colours(list(MADE_UP))["teacher"]
    assert len(set(colours([*MADE_UP, "a", "b", "c", "d"]).values())) == 8


def test_colours_stay_apart_for_colour_blind_readers():
    # Machado et al., 2009, full deuteranopia and protanopia, on linear RGB.
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS.values()])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), np.array(deutan), np.array(protan)):
        seen = np.clip(linear @ matrix.T, 0, 1)
        seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        apart = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
        assert min(apart) > 0.15
    assert not set(SPARE) & set(COLOURS.values())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0031, "3.1 ms"), (2, "2.0 s"), (90, "90 s"), (900, "15 min"), (9000, "2.5 h")]
)
def test_durations_read_in_a_fitting_unit(seconds, text):
    assert duration(seconds) == text


def test_the_hero_is_wide_and_shows_every_coupling(written):
    _, folder, _ = written
    width, height = Image.open(Path(folder) / "hero.png").size
    assert width > 2000
    assert 2.5 < width / height < 5


def test_colour_images_keep_their_colours_on_the_page(tmp_path):
    image = torch.tensor([250, 20, 130], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    page = plain_page_of(made_up(("teacher",)), tmp_path, samples={"teacher": {1: image}})
    content = base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]*)"', page)[0])
    assert Image.open(BytesIO(content)).convert("RGB").getpixel((5, 5)) == (250, 20, 130)
