"""Many GPUs on paper: the formula against the simulation of events, both against limits with a known answer."""

import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks import simulate, two_processes
from benchmarks.cluster import Cluster, Gradient, Job, Pass, all_reduce, buckets, optimizer_seconds, update
from benchmarks.events import update_seconds
from benchmarks.workload import read_measured, timeline, trainings
from nfm.errors import InputError
from nfm.plan.count import Cost, encode_cost, likelihood_step_cost, on_meta
from nfm.recipes import load_recipe
from nfm.student.velocity import SiT
from nfm.teacher.tarflow import TarFlow

MB = 10**6
STEADY = replace(Cluster(), jitter=0.0)
FREE = replace(STEADY, nvlink=1e30, network=1e30, nvlink_latency=0.0, network_latency=0.0, memory=1e30, s3=1e30)
EVEN = tuple(Gradient(10 * MB, (i + 1) / 40) for i in range(40))
# As the student's: what is common to all layers comes last.
LARGE_LAST = (*(Gradient(10 * MB, (i + 1) / 20) for i in range(19)), Gradient(300 * MB, 0.999), Gradient(MB, 1.0))
JOB = Job(256, 64, Pass(0.002, 0.004, 0.02), 1 / 3, EVEN, image=12_296)
JOBS = {
    "a teacher": JOB,
    "a large gradient near the end": replace(JOB, gradients=LARGE_LAST),
    "stored noise": replace(JOB, noise=24_576),
    "online noise": replace(JOB, encode=Pass(0.009, 0.0, 0.016)),
    "passes of uneven size": replace(JOB, batch=200, micro_batch=48),
}
CLUSTERS = {
    "as assumed": STEADY,
    "a slow network": replace(STEADY, network=1e9),
    "a slow store": replace(STEADY, s3=3e6),
    "a slow store, nothing read ahead": replace(STEADY, s3=3e6, prefetch=0),
    "machines of one GPU": replace(STEADY, machine=1),
}


def seconds_of(job, gpus, cluster):
    return update(job, gpus, cluster)[0].seconds


# The formula and the simulation


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS.keys())
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS.keys())
@pytest.mark.parametrize("gpus", [1, 2, 8, 32])
def test_the_simulation_of_even_processes_is_the_formula(job, cluster, gpus):
    """Reading ahead makes up for the first share in a few updates, after which updates are alike."""
    assert update_seconds(job, gpus, cluster, updates=5) == pytest.approx(seconds_of(job, gpus, cluster), rel=1e-9)


def test_one_gpu_computes_and_updates_and_nothing_else():
    parts, bottleneck = update(JOB, 1, STEADY)
    assert parts.seconds == pytest.approx(4 * (0.004 + 64 * 0.002) + 13 * 400 * MB / STEADY.memory)
    assert (parts.gradients, parts.reading, parts.couplings, bottleneck) == (0, 0, 0, "compute")


@pytest.mark.parametrize("find", [seconds_of, update_seconds], ids=["formula", "simulation"])
def test_free_links_make_the_speed_up_linear(find):
    job = replace(JOB, train=Pass(0.002), micro_batch=1)
    alone = find(job, 1, FREE)
    for gpus in (2, 16, 256):
        assert alone / find(job, gpus, FREE) == pytest.approx(gpus, rel=1e-6)


def test_what_a_pass_takes_without_images_is_not_divided():
    job = replace(JOB, train=Pass(0.0, 0.004))
    assert seconds_of(job, 256, FREE) == pytest.approx(seconds_of(job, 4, FREE))
    assert update(replace(JOB, train=Pass(1e-9, 0.0, 0.02)), 256, FREE)[0].launches == pytest.approx(0.02)


@pytest.mark.parametrize("find", [seconds_of, update_seconds], ids=["formula", "simulation"])
def test_a_slow_network_decides(find):
    """Each of 4 machines sends 2 (4 - 1) / 4 of the gradients; all else takes a fifth of a second."""
    slow = replace(STEADY, network=1e5)
    assert find(JOB, 32, slow) == pytest.approx(1.5 * 400 * MB / 1e5, rel=1e-4)
    assert update(JOB, 32, slow)[1] == "gradients"


@pytest.mark.parametrize(("noise", "name"), [(0.0, "reading"), (24_576.0, "couplings")])
def test_a_slow_store_decides(noise, name):
    job, slow = replace(JOB, noise=noise), replace(STEADY, s3=1e5)
    seconds = 256 * (JOB.image + noise) / 1e5  # every machine reads all of the batch
    assert update_seconds(job, 32, slow) == pytest.approx(seconds, rel=1e-6)
    parts, bottleneck = update(job, 32, slow)
    assert (parts.seconds, bottleneck) == (pytest.approx(seconds), name)


def test_a_gradient_that_comes_last_is_not_hidden():
    hidden, shown = (replace(JOB, gradients=g) for g in (EVEN, (Gradient(400 * MB, 1.0),)))
    cluster = replace(STEADY, nvlink=100e9)
    whole = all_reduce(400 * MB, 8, cluster)
    assert update(shown, 8, cluster)[0].gradients == pytest.approx(whole)
    assert update(hidden, 8, cluster)[0].gradients == pytest.approx(all_reduce(30 * MB, 8, cluster))  # the last bucket


@pytest.mark.parametrize("key", ["nvlink", "network", "s3", "memory"])
@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS.keys())
def test_a_faster_link_never_slows_down_nor_passes_the_ideal(cluster, key):
    for job in JOBS.values():
        before = seconds_of(job, 32, cluster)
        after = seconds_of(job, 32, replace(cluster, **{key: 3 * getattr(cluster, key)}))
        least = sum(map(job.train.seconds, job.passes(32)))
        assert least < after <= before * (1 + 1e-12)


def test_the_slowest_process_decides():
    """The largest of 8 standard normal numbers is 1.4236 on average, with a standard deviation of 0.61."""
    job = replace(JOB, train=Pass(0.002), micro_batch=8)
    updates, jitter = 400, 0.02
    slower = update_seconds(job, 32, replace(FREE, jitter=jitter, machine=32), updates=updates)
    eight = update_seconds(replace(job, batch=64), 8, replace(FREE, jitter=jitter), updates=updates)
    error = 4 * 0.61 * jitter / math.sqrt(updates)
    assert eight / 0.016 == pytest.approx(1 + 1.4236 * jitter, abs=error + jitter**2)
    assert slower > eight


def test_an_uneven_process_is_on_average_as_fast_as_an_even_one():
    """A variable whose log has the standard deviation s has sqrt(exp(s^2) - 1) times its mean."""
    job, jitter, updates = replace(JOB, batch=64, train=Pass(0.002)), 0.5, 4000
    error = 4 * math.sqrt((math.exp(jitter**2) - 1) / updates)
    assert update_seconds(job, 1, replace(FREE, jitter=jitter), updates=updates) == pytest.approx(0.128, rel=error)


def test_the_process_with_the_most_images_decides():
    assert replace(JOB, batch=200).passes(32) == [7]
    assert replace(JOB, batch=200, micro_batch=3).passes(32) == [3, 3, 1]
    assert replace(JOB, batch=4).passes(32) == [1]


def test_the_same_seed_gives_the_same_jitter_and_another_one_another():
    uneven = replace(STEADY, jitter=0.05)
    first, again, other = (update_seconds(JOB, 8, uneven, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


# Averaging


def test_averaging_takes_what_a_ring_takes():
    """2 (n - 1) / n of the bytes over every link, in 2 (n - 1) steps."""
    for gpus in (2, 4, 8):
        expected = 2 * (gpus - 1) / gpus * 100 * MB / 450e9 + 2 * (gpus - 1) * 3.4e-6
        assert all_reduce(100 * MB, gpus, STEADY) == pytest.approx(expected)
    assert all_reduce(100 * MB, 1, STEADY) == 0
    # The same links, whether they are within a machine or between machines of one GPU.
    single = replace(STEADY, machine=1, network=450e9, network_latency=3.4e-6)
    assert all_reduce(100 * MB, 8, single) == pytest.approx(all_reduce(100 * MB, 8, STEADY))


def test_small_buckets_over_many_machines_go_by_trees():
    few, many = all_reduce(1, 8, STEADY), all_reduce(1, 256, STEADY)
    assert many - few == pytest.approx(2 * 5 * STEADY.network_latency)  # 32 machines are 5 levels
    large = all_reduce(1000 * MB, 256, STEADY) - all_reduce(1000 * MB, 8, STEADY)
    assert large == pytest.approx(2 * 31 / 32 * 1000 * MB / STEADY.network, rel=0.02)


def test_buckets_are_those_of_torch():
    torch.manual_seed(0)
    sizes = torch.randint(1, 900_000, (60,)).tolist()
    tensors = [torch.empty(size, device="meta") for size in sizes]
    limits = [2**20, 25 * 2**20]
    assigned, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, limits, [False] * len(tensors))
    expected = [sum(4 * sizes[i] for i in bucket) for bucket in assigned]
    found = buckets([Gradient(4 * size, (i + 1) / 60) for i, size in enumerate(sizes)], 25 * 2**20)
    assert [bucket.bytes for bucket in found] == expected
    assert len(found) > 3
    assert found[-1].done == 1


# What a recipe asks for


def small_student():
    return on_meta(lambda: SiT((3, 16, 16), (4, 4), depth=4, width=32, head_size=16, classes=10))


def small_teacher():
    return on_meta(lambda: TarFlow((3, 16, 16), (4, 4), blocks=3, layers=2, width=32, head_size=16, classes=10))


@pytest.mark.parametrize("make", [small_student, small_teacher])
def test_every_gradient_comes_once_and_in_the_order_of_the_backward_pass(make):
    model = make()
    _, gradients = timeline(model)
    assert sorted(g.bytes for g in gradients) == sorted(4 * weight.numel() for weight in model.parameters())
    done = [gradient.done for gradient in gradients]
    assert done == sorted(done)
    assert (done[0] < 0.1, done[-1]) == (True, 1.0)


def test_the_modulation_of_all_layers_comes_after_the_layers():
    model = small_student()
    sizes = [gradient.bytes for gradient in timeline(model)[1]]
    layers = sum(len(list(layer.parameters())) for layer in model.layers)
    assert sizes.index(4 * model.modulation.weight.numel()) > layers


def test_the_forward_share_is_an_encodings():
    forward, _ = timeline(small_teacher())
    assert forward == encode_cost(small_teacher()).flops / likelihood_step_cost(small_teacher()).flops


GPU = {"device": "a GPU of tests", "product_flops": {"fp32": 5e13, "bf16": 8e14}}


def gpu_file(folder, batches=(64, 128)):
    """Writes figures of a GPU in the form of results/gpu.json.

    A batch takes 0.03 s and 2 ms an image, a quarter of that to be encoded in bf16.
    """

    def work(how, flops, faster=1):
        seconds = {n: (0.03 + 0.002 * n) / faster for n in batches}
        rate = GPU["product_flops"][how.split()[0]]
        rows = [
            {"how": how, "batch": n, "images_per_second": n / s, "mfu": n * flops / s / rate}
            for n, s in seconds.items()
        ]
        slow = {"how": "other", "batch": 64, "images_per_second": 1.0, "mfu": 0.001}
        return {"machine": {"device": GPU["device"]}, "product_flops": GPU["product_flops"], "rows": [slow, *rows]}

    content = {
        "teacher-train": work("bf16 compiled", 7e11),
        "student-train": work("bf16 compiled", 7e11),
        "encode": work("fp32", 2e11),
    }
    content["encode"]["rows"] += work("bf16", 2e11, faster=4)["rows"]
    path = folder / "gpu.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("batches", [(64, 128), (128,), (32, 64, 128)])
def test_the_measured_network_takes_the_measured_time(tmp_path, batches):
    found = read_measured(gpu_file(tmp_path, batches))["teacher-train"]
    besides = 0.005
    made = found.scaled(Cost(round(found.flops), 0), besides, STEADY)
    for n in batches:
        assert made.seconds(n) + besides == pytest.approx(0.03 + 0.002 * n, rel=1e-9)
    assert made.fixed == pytest.approx(0.025 if len(batches) > 1 else 0, abs=1e-12)


def test_twice_the_flops_take_twice_the_arithmetic(tmp_path):
    found = read_measured(gpu_file(tmp_path))["encode"]
    once, twice = (found.scaled(Cost(k * round(found.flops), 100), 0.0, STEADY) for k in (1, 2))
    assert twice.per_image == pytest.approx(2 * once.per_image)
    assert twice.fixed == once.fixed
    assert once.least == 100 * STEADY.launch


def test_trainings_are_those_of_the_recipe(tmp_path):
    params = load_recipe("digits")
    teacher, stored, online, rounded = trainings(params, read_measured(gpu_file(tmp_path)), STEADY)
    assert (teacher.steps, stored.steps) == (params.teacher.train.steps, params.student.train.steps)
    assert teacher.job.image == 64 + 8
    assert stored.job.noise == 2 * 64
    assert stored.before == 16 * 1257
    assert (teacher.job.encode, stored.job.encode, online.job.noise) == (None, None, 0)
    assert online.job.encode == stored.encode
    assert online.job.encode is not None
    assert rounded.job.encode is not None
    assert rounded.job.encode.per_image == pytest.approx(online.job.encode.per_image / 4)
    assert replace(rounded.job, encode=online.job.encode) == online.job


def test_hours_are_those_of_all_images_and_of_the_encoding_before_them(tmp_path):
    params = load_recipe("digits")
    _, stored, online, _ = trainings(params, read_measured(gpu_file(tmp_path)), STEADY)
    stored = replace(stored, encode=Pass(0.01))
    images = params.student.train.steps * params.student.train.batch
    for grows in (False, True):
        for training in (stored, online):
            for row in simulate.rows("digits", training, (1, 4), STEADY, grows=grows):
                seconds = images / row["images_per_second"]
                if training is stored:
                    seconds += 16 * 1257 * 0.01 / row["gpus"]
                assert row["hours"] == pytest.approx(seconds / 3600, rel=1e-4)  # five figures


def test_the_assumed_price_is_that_of_the_recipes():
    for recipe in simulate.RECIPES:
        cost = load_recipe(recipe).cost
        assert (cost.gpu_hour["H200"], cost.currency) == (Cluster().gpu_hour, "USD")


# The command


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["simulate", *map(str, arguments)])
    simulate.main()


def test_the_command_writes_tables_a_picture_and_keeps_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "RECIPES", ("digits",))
    monkeypatch.setattr(simulate, "GPUS", (1, 4, 16))
    to = tmp_path / "simulation.json"
    to.write_text(json.dumps({"check": "kept", "tables": "replaced"}))
    run(monkeypatch, "--gpu", gpu_file(tmp_path), "--to", to, "--set", "network=1e9", "--set", "prefetch=1")
    found = json.loads(to.read_text())
    assert found["check"] == "kept"
    assert to.with_suffix(".png").stat().st_size > 1000
    assumed = found["assumed"]
    assert (assumed["network"]["value"], assumed["network"]["source"]) == (1e9, "the command line")
    assert assumed["nvlink"]["source"] == Cluster().assumptions()["nvlink"]["source"]
    assert found["measured"]["encode"]["device"] == GPU["device"]
    for rows in found["tables"].values():
        assert [row["gpus"] for row in rows] == [1, 4, 16] * 4
        for row in rows:
            assert row["price"] == pytest.approx(row["hours"] * row["gpus"] * 3.8, rel=2e-4)  # five figures of each
            assert row["bottleneck"] in row["seconds"]
            assert 0.9 < row["simulated_over_formula"] < 1.01
        assert all(row["efficiency"] == 1 for row in rows if row["gpus"] == 1)
    fixed, grows, fast = (found["tables"][name] for name in ("batch of the recipe", "batch grows", "faster network"))
    assert [row["batch"] for row in grows[:3]] == [row["gpus"] * grows[0]["batch"] for row in grows[:3]]
    assert {row["batch"] for row in fixed[:3]} == {load_recipe("digits").teacher.train.batch}
    assert all(a["images_per_second"] >= b["images_per_second"] for a, b in zip(fast, fixed, strict=True))
    assert "digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "words"),
    {
        "netwrk=1": "--set is 'netwrk=1', expected KEY=NUMBER; did you mean 'network'?",
        "network": "--set is 'network', expected KEY=NUMBER",
        "network=fast": "--set network is 'fast', expected a number above 0",
        "network=0": "--set network is '0', expected a number above 0",
        "s3=nan": "--set s3 is 'nan', expected a number above 0",
        "jitter=-0.1": "--set jitter is '-0.1', expected a number of 0 or more",
        "machine=1.5": "--set machine is '1.5', expected a whole number above 0",
    }.items(),
)
def test_a_bad_setting_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, setting, words):
    refused(monkeypatch, capsys, words, "--gpu", gpu_file(tmp_path), "--to", tmp_path / "x.json", "--set", setting)
    assert not (tmp_path / "x.json").exists()


def test_a_gpu_that_was_not_measured_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys):
    refused(monkeypatch, capsys, "none.json is no file", "--gpu", tmp_path / "none.json", "--to", tmp_path / "x.json")
    path = gpu_file(tmp_path)
    content = json.loads(path.read_text())
    del content["encode"]
    path.write_text(json.dumps(content))
    refused(monkeypatch, capsys, "has no row 'fp32' of encode", "--gpu", path, "--to", tmp_path / "x.json")


def refused(monkeypatch, capsys, words, *arguments):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_values_in_their_range_are_taken():
    assert simulate.changed(Cluster(), ["jitter=0", "prefetch=0", "machine=4"]) == replace(
        Cluster(), jitter=0.0, prefetch=0, machine=4
    )
    with pytest.raises(InputError):
        simulate.changed(Cluster(), ["prefetch=0.5"])


# Two processes of a CPU


def test_predictions_for_two_processes_are_made_of_what_was_measured():
    """25 MiB in 20 ms; 117 MB are averaged behind a pass of 0.1 s, or beside two thirds of it."""
    bucket = int(Cluster().bucket)
    seconds = {
        "alone": [0.11] * 3,
        "alone, pass": [0.1] * 3,
        "alone, weights": [0.01] * 3,
        "beside": [0.22] * 3,
        "beside, pass": [0.2] * 3,
        "beside, weights": [0.02] * 3,
        f"averaging {two_processes.SMALL}": [1e-6] * 3,
        f"averaging {bucket}": [0.02] * 3,
        "both": [0.33] * 3,
    }
    found = two_processes.compared(4, seconds)
    weights = sum(weight.numel() for weight in on_meta(two_processes.make).parameters())
    averaging = 4 * weights / bucket * 0.02
    predicted = found["predicted_seconds"]
    assert predicted["beside, nothing overlapped"] == pytest.approx(0.2 + averaging + 0.02, rel=1e-3)
    assert 0.11 < predicted["alone"] < 0.11 + averaging
    assert 0.22 < predicted["beside"] < predicted["beside, nothing overlapped"]
    assert found["predicted_over_measured"]["alone"] == pytest.approx(0.33 / predicted["alone"])
    assert found["images_per_second"] == pytest.approx(8 / 0.33)


def test_parts_of_an_update_add_up():
    for job in JOBS.values():
        parts, _ = update(job, 16, STEADY)
        assert parts.seconds == pytest.approx(sum(asdict(parts).values()))
        assert parts.optimizer == optimizer_seconds(job.weight_bytes, STEADY)


# The docs


@pytest.fixture(scope="module")
def result():
    return json.loads((simulate.RESULTS / "simulation.json").read_text())


@pytest.fixture(scope="module")
def page():
    return (simulate.RESULTS.parent / "docs" / "many_gpus.md").read_text()


def test_the_tables_of_the_docs_are_those_of_the_file(result, page):
    assert simulate.markdown(result, "imagenet64") in page
    for kind, words in {
        "alone": "of one process alone",
        "beside": "of both at once",
        "beside, nothing overlapped": "of both at once, averaging behind the pass",
    }.items():
        ratios = [row["predicted_over_measured"][kind] for row in result["check"]["rows"]]
        cells = [f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})" for ratio in ratios]
        assert f"| {' | '.join([words, *cells])} |" in page


def test_the_docs_say_of_the_figures_what_they_are(result, page):
    text = " ".join(page.split())
    rows = [row for table in result["tables"].values() for row in table]
    most = {
        batch: max(row["reading_over_update"] for row in rows if row["batch"] == batch) for batch in (256, 64 * 256)
    }
    assert f"takes at most {100 * most[256]:.0f} % of an update" in text
    assert f"for 64 images on each of 256 GPUs {100 * most[64 * 256]:.0f} % (student, stored)" in text
    assert {row["bottleneck"] for row in rows} == {"compute", "launches", "gradients", "couplings"}
    teacher, student = result["jobs"][:2]
    assert f"{student['gradient_bytes'] / 1e9:.1f} GB of gradients (student)" in text
    assert f"or {teacher['gradient_bytes'] / 1e9:.1f} GB (teacher)" in text
    assert f"A third of the student's gradients, {student['largest_bucket']['bytes'] / 1e9:.1f} GB" in text
    assert student["largest_bucket"]["bytes"] / student["gradient_bytes"] == pytest.approx(1 / 3, abs=0.02)
    by_key = {(row["recipe"], row["training"], row["gpus"]): row for row in result["tables"]["batch of the recipe"]}
    for (recipe, training, gpus), row in by_key.items():
        other = by_key[simulate.RECIPES[0], training, gpus]["images_per_second"]
        assert row["images_per_second"] == pytest.approx(other, rel=1e-3), recipe
    grown = {row["training"]: row["efficiency"] for row in result["tables"]["batch grows"][:36] if row["gpus"] == 256}
    assert f"does {100 * grown['teacher']:.0f} % of what it does alone in the teacher's training" in text
    assert f"and {100 * grown['student, stored']:.0f} % in that of a student on stored noise" in text
    for gpus in (1, 2, 4, 8):
        stored, online, rounded = (
            by_key["imagenet64", f"student, {kind}", gpus]["price"] for kind in ("stored", "online", "online in bf16")
        )
        assert 4 < online / stored < 5
        assert rounded / stored == pytest.approx(1.2, abs=0.05)


def test_the_file_is_of_what_was_measured_and_is_assumed(result):
    measured = read_measured(simulate.RESULTS / "gpu.json")
    assert result["measured"] == json.loads(json.dumps({work: asdict(value) for work, value in measured.items()}))
    assert result["assumed"] == Cluster().assumptions() | simulate.OTHER
    assert all("H200" in value["device"] for value in result["measured"].values())
