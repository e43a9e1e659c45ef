"""The benchmark command: what it measures, says and refuses. No test asserts a time."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
import yaml

from benchmarks import __main__ as command
from benchmarks import gpu, measures, networks, peers, scaling, sizes, stream
from benchmarks.table import NOT_MEASURED, Row, text
from benchmarks.timing import Ratio, compare
from nfm.config import load_params
from nfm.data.shards import Split
from nfm.errors import InputError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    command.main()


def test_both_variants_have_as_many_turns_and_are_warmed_up():
    calls = []
    ratio = compare(lambda: calls.append("ours"), lambda: calls.append("theirs"), seconds=0.0, rounds=4)
    # Two calls to warm up and to see how long one takes, then one a round.
    assert calls.count("ours") == calls.count("theirs") == 2 + 4
    turns = calls[4:]
    assert turns[:2] != turns[2:4]
    assert ratio.rounds == 4


def test_the_lower_of_both_ratios_is_quoted():
    assert Ratio(median=2.0, best=1.5, ours=1, theirs=2, rounds=3).quoted == 1.5
    assert Ratio(median=1.2, best=1.5, ours=1, theirs=2, rounds=3).quoted == 1.2


def test_what_was_not_measured_says_so():
    row = Row("ot", "128 x 64", "torchcfm (POT)", None, 2.0)
    assert NOT_MEASURED in text([row])
    assert row.as_json()["ratio"] == NOT_MEASURED


def test_a_run_keeps_the_rows_of_other_benchmarks(tmp_path, monkeypatch, capsys):
    file = tmp_path / "benchmarks.json"
    file.write_text(json.dumps({"benchmarks": {"data": {"rows": ["kept"]}, "semidiscrete": {"rows": ["replaced"]}}}))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    run(monkeypatch, "semidiscrete", "--seconds", 0, "--to", file)
    content = json.loads(file.read_text())["benchmarks"]
    assert content["data"]["rows"] == ["kept"]
    (row,) = content["semidiscrete"]["rows"]
    assert row["quoted"] == min(row["ratio"]["median"], row["ratio"]["best"])
    assert {"threads", "cores", "torch", "clock"} <= set(content["semidiscrete"]["machine"])
    assert "semidiscrete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "NAME is 'nothing', expected one of teacher-train"),
        (["ot", "--peer", "torchcfm"], "--peer is 'torchcfm', expected NAME=PATH"),
        (["ot", "--peer", "other=/tmp"], "--peer is 'other=/tmp', expected NAME=PATH with a name of ml-tarflow"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(monkeypatch, capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_checkout_without_the_module_is_refused(tmp_path):
    with pytest.raises(InputError, match="name a checkout"):
        peers.load([f"ml-tarflow={tmp_path}"])


def test_the_networks_measured_are_the_same_every_time_and_not_trivial():
    size = sizes.Size("tiny", (1, 8, 8), 4, 64, 2, 1, 3)
    x, label = size.images(0), size.labels()
    first, second = (size.teacher().encode(x, label)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert (first - x).abs().max() > 1e-2
    velocity = size.student()(x, torch.full((3,), 0.5), label)
    assert velocity.abs().max() > 1e-3


def test_an_assignment_that_costs_more_is_an_error():
    data, noise = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]) + 0.1
    best, worst = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert measures.excess(data, noise, best, best) == 0
    assert measures.excess(data, noise, worst, best) > 1


CHECKOUTS = {
    "ml-tarflow": """
class Model(torch.nn.Linear):
    def __init__(self, channels, side, patch, width, blocks, layers, num_classes):
        super().__init__(side, side)
    def forward(self, x, y):
        return super().forward(x), [], torch.zeros(len(x))
    def get_loss(self, z, log_det):
        return z.square().mean() - log_det.mean()
    def patchify(self, x):
        return x
    def reverse(self, x, y):
        return x
""",
    "sit": """
class SiT(torch.nn.Linear):
    def __init__(self, input_size, **_):
        super().__init__(input_size, input_size)
    def forward(self, x, t, y):
        return super().forward(x)
""",
}
ROWS = {
    networks.teacher_train: "ml-tarflow",
    networks.encode: "ml-tarflow",
    networks.decode: "ml-tarflow",
    networks.student_train: "sit",
    networks.sampling: "sit",
}


@pytest.mark.parametrize("benchmark", ROWS, ids=lambda benchmark: benchmark.__name__)
def test_a_peers_checkout_is_run_and_without_it_the_rows_say_not_measured(tmp_path, monkeypatch, benchmark):
    name = ROWS[benchmark]
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")  # compiled rows without a compiler's time
    (tmp_path / f"{peers.MODULES[name]}.py").write_text("import torch\n" + CHECKOUTS[name])
    monkeypatch.delitem(sys.modules, peers.MODULES[name], raising=False)
    size = sizes.Size("tiny", (1, 8, 8), 4, 64, 1, 1, 4)
    given = peers.load([f"{name}={tmp_path}"])
    monkeypatch.delitem(sys.modules, peers.MODULES[name])
    alone, beside = ({(row.size, row.over): row for row in benchmark(size, which, 0.0)} for which in ({}, given))
    assert alone.keys() == beside.keys()
    assert all(row.ratio for row in beside.values())
    assert {over for (_, over), row in alone.items() if row.ratio is None} == {o for _, o in alone} - {"baseline"}
    for row in alone.values():
        assert row.error is None or row.error < (1e-2 if "bf16" in row.size else 1e-4)


def test_the_figures_of_a_gpu_are_taken_in_small_on_any_device(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    monkeypatch.setattr(gpu, "fast", partial(gpu.fast, backend="aot_eager"))
    rates = {precision: gpu.product_rate(gpu.SMALL.product, precision) for precision in ("no", "bf16")}
    found = {name: gpu.measured(name, gpu.SMALL, rates) for name in gpu.WORKS}
    rows = {(name, row["how"], row["batch"]): row for name, work in found.items() for row in work["rows"]}
    assert {name for name, *_ in rows} == {"teacher-train", "student-train", "encode", "decode", "sample"}
    assert all(row["images_per_second"] > 0 and row.get("mfu", 1) > 0 for row in rows.values())
    assert {how for name, how, _ in rows if name == "student-train"} == {"bf16", "bf16 compiled"}
    errors = [(how, row["relative_rms_error"]) for (_, how, _), row in rows.items() if "relative_rms_error" in row]
    assert all(error < (0.02 if "bf16" in how else 1e-3) for how, error in errors)
    assert all(error == 0 for how, error in errors if how == "token by token, replayed")
    for name in ("teacher-train", "student-train"):
        assert found[name]["profiles"].keys() == {"bf16", "bf16 compiled"}
        for profile in found[name]["profiles"].values():
            assert 0 < sum(event["share"] for event in profile) <= 1 + 1e-9


def test_the_cost_of_streaming_is_taken_in_small():
    found = stream.measured(stream.Scale(204, 34, 1, 3, 2), latency=0.01)
    assert found["updates"] == 6
    assert found["seconds_per_update"].keys() == {"disk", "streamed", "streamed, nothing ahead"}
    assert all(0 < share < 1 for share in found["waiting"].values())
    assert found["bytes"]["cache"] < found["bytes"]["images"]
    assert found["slowdown"].keys() == found["seconds_per_update"].keys() - {"disk"}


def test_the_exponent_of_a_growth_is_its_slope_in_logarithms():
    sizes = [10, 100, 1000, 10_000]
    rows = [{"seconds": 1e-4 * size**1.5} for size in sizes]
    assert scaling.exponent(sizes, rows) == 1.5
    rows[0]["seconds"] = 0.01  # start-up, which is under a second
    assert scaling.exponent(sizes, rows) == 1.5
    assert scaling.exponent(sizes[:1], rows[:1]) is None


def test_what_grows_with_images_is_done_for_all_of_them(tmp_path):
    scaling.write(600, tmp_path)
    split = Split.open(tmp_path / "train", verify=True)
    assert len(split) == 600
    assert len(split.raw(torch.arange(600)).flatten(1).unique(dim=0)) == 600
    for name in (*scaling.WORKS, "draws"):
        found = scaling.alone(name, 10 if name == "draws" else 600, tmp_path / "again" if name == "write" else tmp_path)
        assert found["seconds"] > 0
        assert found["peak_mb"] >= 0


@pytest.mark.parametrize(("power", "low", "high"), [(1, 1, 1), (2, 1.2, 2), (0.5, 0.5, 0.8)])
def test_the_exponent_of_the_growing_part_leaves_out_what_is_the_same_for_any_size(power, low, high):
    sizes = [1, 2, 4, 8]
    rows = [{"seconds": 20 + 3.0 * size**power} for size in sizes]
    found = scaling.growing(sizes, rows)
    assert low <= found["growing_exponent"] <= high
    if power == 1:
        assert (found["fixed_seconds"], found["seconds_each"]) == (20, 3)
    assert scaling.growing(sizes[:2], rows[:2]) == {}


def stages_of(project):
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    return Counter(name.partition("@")[0] for name in listed.stdout.split())


def test_the_projects_of_whole_runs_have_the_stages_of_as_many_seeds_and_couplings(tmp_path):
    common = dict.fromkeys(["prepare", "features", "reference", "report"], 1)
    seeds = stages_of(scaling.make_project(tmp_path / "seeds", "seeds", 3))
    once = dict.fromkeys(["teacher", "couple", "couple-teacher", "evaluate-teacher"], 3)
    assert seeds == common | once | {"student": 6, "evaluate": 6}
    couplings = stages_of(scaling.make_project(tmp_path / "couplings", "couplings", 5))
    once = dict.fromkeys(["teacher", "couple-teacher", "evaluate-teacher"], 1)
    assert couplings == common | once | dict.fromkeys(["couple", "student", "evaluate"], 5)
    for name in ("seeds", "couplings"):
        load_params(tmp_path / name / "params.yaml")


def test_a_whole_run_makes_every_output_and_counts_what_its_stages_take(tmp_path, monkeypatch):
    root, folder = tmp_path / "root", tmp_path / "run"
    (root / "nfm").mkdir(parents=True)
    for name in scaling.FILES:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy2(scaling.ROOT / name, root / name)
    large = {"cmd": f"{sys.executable} -c 'len(bytes([1]) * (1000 * 2**20))'"}
    touch = {"foreach": "${couplings}", "do": {"cmd": "touch ${item}", "outs": ["${item}"]}}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"large": large, "touch": touch}}))
    monkeypatch.setattr(scaling, "ROOT", root)
    found = scaling.alone("couplings", 2, folder)
    assert {path.name for path in (folder / "project").glob("independent-*")} == {f"independent-{i}" for i in range(2)}
    assert found["stages"] == 3
    assert found["peak_mb"] >= 1000
    assert found["seconds"] > 0


def test_measuring_one_growth_keeps_the_figures_of_the_others(tmp_path, monkeypatch, capsys):
    file = tmp_path / "scaling.json"
    kept = {"seeds": {"sizes": [1], "works": {"seeds": {"rows": [{"seconds": 50.0}], "exponent": None}}}}
    file.write_text(json.dumps(kept | {"draws": "replaced"}))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(scaling, "measured", lambda name, sizes: {"sizes": list(sizes), "rows": name})
    monkeypatch.setattr(sys, "argv", ["scaling", "draws", "--draws", "3", "--to", str(file)])
    scaling.main()
    content = json.loads(file.read_text())
    assert content.keys() == {"seeds", "draws"}
    assert content["seeds"] == kept["seeds"]
    assert content["draws"].keys() == {"cores", "load", "load_after", "sizes", "rows"}
    assert content["draws"]["sizes"] == [3]
    assert file.with_suffix(".png").stat().st_size > 0
    assert "draws" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["scaling", "pictures"])
    with pytest.raises(SystemExit, match="2"):
        scaling.main()
    assert "NAME is 'pictures', expected one of images, draws, seeds" in capsys.readouterr().err


def test_nothing_grows_faster_than_linearly_and_memory_does_not_grow_with_images():
    found = json.loads((command.RESULT.parent / "scaling.json").read_text())
    images = found["images"]
    assert images["sizes"] == [1_000, 10_000, 100_000, 1_000_000]
    works = [work for part in ("images", "draws", *scaling.RUNS) for work in found[part]["works"].values()]
    assert len(works) == 7
    assert all(work["exponent"] < 1.15 for work in works)  # linear, and the scatter of a busy machine
    for work in images["works"].values():
        small, large = work["rows"][1]["peak_mb"], work["rows"][-1]["peak_mb"]
        assert large < small + 100  # where the pixels are 64 MB, the labels 8 MB
    for name in scaling.RUNS:
        run = found[name]["works"][name]
        assert found[name]["sizes"] == [1, 2, 4, 8]
        assert run["growing_exponent"] < 1.15
        assert run["rows"][-1]["peak_mb"] < 1.1 * run["rows"][0]["peak_mb"]
    seeds, couplings = (found[name]["works"][name] for name in scaling.RUNS)
    text = " ".join((scaling.ROOT / "docs" / "performance.md").read_text().split())
    assert f"(eight stages) costs {seeds['seconds_each']:.1f} s of CPU" in text
    assert f"all of the kind independent) {couplings['seconds_each']:.1f} s" in text
    assert seeds["growing_exponent"] == couplings["growing_exponent"]
    assert f"an exponent of {seeds['growing_exponent']} for both" in text
    assert f"{max(row['peak_mb'] for run in (seeds, couplings) for row in run['rows'])} MB whatever" in text
    assert found["stages"]["sizes"][-1] == 1000
    assert found["stages"]["rows"][-1]["flow_a_stage"] < 0.3
