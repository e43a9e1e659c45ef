"""The planner against formulas by hand, published figures, and what the stages really compute and write."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nfm.build.data import make_source
from nfm.build.student import make_student
from nfm.build.teacher import make_teacher
from nfm.config import FolderData, parse_params, with_overrides
from nfm.errors import InputError
from nfm.plan import count
from nfm.plan.command import command
from nfm.plan.forecast import forecast, measure
from nfm.plan.gpu import GPUS, Gpu
from nfm.plan.size import Size, data_size
from nfm.plan.storage import advise
from nfm.plan.work import LAUNCH, Work
from nfm.recipes import load_recipe, recipe_text, smoke
from nfm.stages.couple import couple
from nfm.stages.evaluate import evaluate_student, evaluate_teacher
from nfm.stages.features import features
from nfm.stages.prepare import prepare
from nfm.stages.reference import reference
from nfm.stages.student import student
from nfm.stages.teacher import teacher

ROOT = Path(__file__).parents[1]
IMAGENET = Size((3, 64, 64), 1000, 1_281_167, 50_000)
OPTIONS = {"gpu_name": "h100", "utilisation": 0.4, "images": None, "classes": None, "disk": 1e11, "file": None}
BLOCKS, LAYERS, WIDTH, PATCH = 3, 2, 32, (2, 4)
SHAPE, TOKENS, NUMBERS = (3, 8, 8), 8, 24
HOST = {f"couple@{name}" for name in ("independent", "minibatch-ot", "inverse-regression")}  # which compute nothing


def small_teacher(device="meta"):
    with torch.device(device):
        return make_teacher(
            {
                "shape": SHAPE,
                "patch": PATCH,
                "blocks": BLOCKS,
                "layers": LAYERS,
                "width": WIDTH,
                "head_size": 16,
                "classes": 5,
            }
        )


def encode_by_hand():
    """Every token but the last enters; a layer has 12 W^2 weights, attention is two products of T x T x W."""
    tokens = TOKENS - 1
    layer = tokens * 24 * WIDTH**2 + 4 * tokens**2 * WIDTH
    ends = tokens * (2 * NUMBERS * WIDTH + 2 * WIDTH * 2 * NUMBERS)
    return BLOCKS * (LAYERS * layer + ends)


# Networks


def test_encoding_costs_what_the_formula_says():
    assert count.encode_cost(small_teacher()).flops == encode_by_hand()


def test_an_update_costs_three_encodings_but_for_the_gradient_of_the_images():
    spared = 2 * (TOKENS - 1) * NUMBERS * WIDTH
    assert count.likelihood_step_cost(small_teacher()).flops == 3 * encode_by_hand() - spared


def test_denoising_costs_two_encodings_and_attention_once_more():
    """Weights need no gradient; of the two products of attention both factors do."""
    attention = BLOCKS * LAYERS * 4 * (TOKENS - 1) ** 2 * WIDTH
    assert count.denoise_cost(small_teacher()).flops == 2 * encode_by_hand() + attention


def test_decoding_costs_its_passes_one_by_one():
    passes = range(1, TOKENS)
    layer = sum(24 * WIDTH**2 + 4 * seen * WIDTH for seen in passes)
    ends = len(passes) * (2 * NUMBERS * WIDTH + 2 * WIDTH * 2 * NUMBERS)
    assert count.decode_cost(small_teacher()).flops == BLOCKS * (LAYERS * layer + ends)
    assert count.decode_passes(small_teacher()) == BLOCKS * len(passes)


def test_parameters_and_bytes_are_those_of_a_real_module():
    real = small_teacher("cpu")
    assert count.parameters(small_teacher()) == sum(value.numel() for value in real.parameters())
    assert count.weight_bytes(small_teacher()) == sum(value.numel() * 4 for value in real.state_dict().values())


def test_sit_xl_2_has_its_published_size_and_cost():
    """675 M parameters and 118.64e9 multiply-adds on 32x32x4 latents: DiT-XL/2 in Peebles and Xie, table 4."""
    sizes = {"shape": (4, 32, 32), "patch": (2, 2), "depth": 28, "width": 1152, "head_size": 72, "classes": 1000}
    model = count.on_meta(lambda: make_student(sizes))
    assert count.parameters(model) == pytest.approx(675e6, rel=0.005)
    assert count.velocity_cost(model).flops == pytest.approx(2 * 118.64e9, rel=0.005)


# Stages


def tiny_params(**changes):
    mapping = with_overrides(yaml.safe_load(recipe_text("digits")), changes)
    return parse_params(smoke(mapping), "digits")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Tiny stages that have run in this process: params, folder, and the FLOPs of one run of each."""
    params = tiny_params(**{"coupling.teacher.draws": 2, "evaluate.guidance": 1.5})
    root, flops = tmp_path_factory.mktemp("ran"), {}

    def counted(name, stage, *arguments):
        # torch's fused attention of the CPU is unknown to its own counter.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            stage(root, params, *arguments)
        flops[name] = counter.get_total_flops()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "none")
        prepare(root, params)
        counted("features", features)
        counted("reference", reference)
        counted("teacher", teacher, 0)
        for name in params.couplings:
            counted("couple-teacher" if name == "teacher" else f"couple@{name}", couple, name, 0)
            counted(f"student@{name}", student, name, 0)
        counted("evaluate", evaluate_student, "teacher", 0)
        counted("evaluate@inverse-regression", evaluate_student, "inverse-regression", 0)
        counted("evaluate-teacher", evaluate_teacher, 0)
    return params, root, flops


def test_planned_flops_are_those_that_the_stages_compute(ran):
    params, root, flops = ran
    planned = forecast(params, data_size(params.data, root, None, None), disk=0).stages
    assert {stage.name for stage in planned} == set(flops) - HOST
    for stage in planned:
        # The covariance of noise or features, which is computed on the host, is not planned.
        tolerance = 0.1 if stage.name in ("couple-teacher", "reference") else 0.02
        assert stage.flops / stage.runs == pytest.approx(flops[stage.name], rel=tolerance), stage.name


def test_online_draws_cost_an_encoding_for_each_image_of_an_update():
    size = Size((1, 8, 8), 10, 1257, 540)
    stored, online = (
        {s.name: s for s in forecast(tiny_params(**{"coupling.teacher.draws": k}), size, disk=0).stages}
        for k in (2, "online")
    )
    params = tiny_params()
    more = online["student@teacher"].flops - stored["student@teacher"].flops
    teacher = count.on_meta(
        lambda: make_teacher(
            {
                "shape": (1, 8, 8),
                "patch": (1, 8),
                "classes": 10,
                **params.teacher.model_dump(include={"blocks", "layers", "width", "head_size"}),
            }
        )
    )
    updates = params.student.train.steps * params.student.train.batch
    assert more == updates * count.encode_cost(teacher).flops


def test_planned_bytes_are_those_of_the_files_that_the_stages_write(ran):
    params, root, _ = ran
    planned = forecast(params, data_size(params.data, root, None, None), disk=0).artifacts
    for artifact in planned:
        if not artifact.kept:
            continue
        for coupling in params.couplings:
            path = root / artifact.path.replace("C-S", f"{coupling}-0").replace("-S", "-0").replace("/S/", "/0/")
            if "evaluate/" in artifact.path and coupling != "teacher":
                continue
            files = [f for f in path.rglob("*") if f.suffix not in (".json", ".png")] if path.is_dir() else [path]
            written = sum(f.stat().st_size for f in files)
            # Headers are a hundred bytes a tensor; ten samples lack a class that would be shown.
            assert 0.9 * artifact.bytes <= written < 1.02 * artifact.bytes + 12_000, path


# Draws


def imagenet_params(**changes):
    sizes = {"student.train.steps": 2**20, "student.train.batch": 256, "coupling.teacher.draws": 16}
    return parse_params(with_overrides(yaml.safe_load(recipe_text("digits")), sizes | changes), "digits")


def test_encoding_counts_in_the_precision_that_it_has():
    size = Size((1, 8, 8), 10, 1257, 540)
    for precision in ("fp32", "bf16"):
        params = tiny_params(**{"coupling.teacher.draws": "online", "coupling.teacher.precision": precision})
        stages = {stage.name: stage for stage in forecast(params, size, disk=0).stages}
        (encode,) = (w for w in stages["couple-teacher"].work if w.unit.startswith("teacher.encode/"))
        assert set(encode.flops) == {precision}
        assert set(stages["student@teacher"].work[0].flops) == {"fp32", precision}


def test_sixteen_draws_of_imagenet_64_take_half_a_terabyte_and_so_are_drawn_online():
    advice = advise(imagenet_params(), IMAGENET, disk=1e11)
    assert advice is not None
    assert advice.stored_bytes == {16: 1_281_167 * 16 * 3 * 64 * 64 * 2}
    assert advice.stored_bytes[16] == pytest.approx(0.5e12, rel=0.01)
    assert advice.recommended == "online"
    assert "504 GB" in advice.reason


def test_draws_are_stored_where_they_fit_and_save_encodes():
    advice = advise(imagenet_params(), IMAGENET, disk=6e11)
    assert advice is not None
    assert advice.recommended == 16
    assert advice.stored_encodes[16] < advice.online_encodes == 2**28


def test_draws_are_online_where_a_student_sees_fewer_images_than_they_are():
    advice = advise(imagenet_params(**{"student.train.steps": 1000}), IMAGENET, disk=1e15)
    assert advice is not None
    assert advice.recommended == "online"


# Time


def test_time_is_of_what_takes_longest_arithmetic_memory_or_launches():
    gpu = Gpu(half=1e12, single=1e11, bandwidth=1e10)
    assert Work("x", 3, {"bf16": 1e12, "fp32": 1e11}).seconds(gpu, 0.5) == pytest.approx(3 * (2 + 2))
    assert Work("x", 3, {"bf16": 1e12}, moved=1e11).seconds(gpu, 0.5) == pytest.approx(30)
    assert Work("x", 3, {"bf16": 1e3}, operations=1000).seconds(gpu, 0.5) == pytest.approx(3000 * LAUNCH)


def test_every_unit_is_measured_and_a_slower_machine_takes_longer():
    params, size = tiny_params(), Size((1, 8, 8), 10, 200, 60)
    planned = forecast(params, size, disk=0).stages
    seconds = measure(params, size, planned, torch.device("cpu"), seconds=0.01)
    assert all(value > 0 for value in seconds.values())
    total = sum(stage.measured(seconds) for stage in planned)
    assert sum(stage.measured({unit: 2 * value for unit, value in seconds.items()}) for stage in planned) == 2 * total


def test_the_committed_benchmark_predicts_every_stage_within_a_quarter():
    """Or within the twentieth of a second that a stage takes to open and close."""
    benchmark = json.loads((ROOT / "results" / "plan.json").read_text())
    assert {stage.partition("@")[0] for stage in benchmark["stages"]} == {
        "features",
        "reference",
        "teacher",
        "couple",
        "couple-teacher",
        "student",
        "evaluate",
        "evaluate-teacher",
    }
    for name, stage in benchmark["stages"].items():
        assert abs(stage["predicted"] - stage["measured"]) < max(0.25 * stage["measured"], 0.05), name
    assert 0.75 < benchmark["scaling"]["student.update@independent/16"]["ratio"] < 1.25


# Command


def test_the_command_prints_tables_and_writes_what_they_show(tmp_path):
    file = tmp_path / "plan.json"
    text = command(load_recipe("digits"), tmp_path, measured=False, **{**OPTIONS, "file": file})
    found = json.loads(file.read_text())
    assert found["data"]["train"] == 1257
    assert "student@semidiscrete-ot" in text
    assert "recommended: 16 stored draws" in text
    hours = {stage["name"]: stage["gpu_hours"] for stage in found["stages"]}
    twice = command(load_recipe("digits"), tmp_path, measured=False, **{**OPTIONS, "gpu_name": "a100", "file": file})
    assert "a100 hours" in twice
    slower = {stage["name"]: stage["gpu_hours"] for stage in json.loads(file.read_text())["stages"]}
    assert all(slower[name] >= hours[name] for name in hours)


def test_a_folder_that_is_not_there_is_planned_for_a_stated_number_of_images(tmp_path):
    folder = {"kind": "folder", "folder": "images", "image_size": 8, "channels": 1, "filter": "box"}
    section = FolderData(**folder, test_fraction=0.25, limit=None, flips=True, validation=None, seed=0, version=None)
    with pytest.raises(InputError, match="--images"):
        data_size(section, tmp_path, None, None)
    assert data_size(section, tmp_path, 1000, 3) == Size((1, 8, 8), 3, 1500, 250)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "images" / name / f"{i}.png").touch()
    assert data_size(section, tmp_path, None, None) == Size((1, 8, 8), 2, 12, 2)


def test_a_validation_share_is_taken_off_the_training_images(tmp_path):
    section = tiny_params(**{"data.validation": 0.1}).data
    source = make_source(section, tmp_path)
    assert data_size(section, tmp_path, None, None) == Size((1, 8, 8), 10, len(source.train), len(source.test))


def test_an_unknown_gpu_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="did you mean 'h100'"):
        command(load_recipe("digits"), tmp_path, measured=False, **{**OPTIONS, "gpu_name": "h1000"})


def test_every_gpu_is_faster_at_half_precision():
    assert all(gpu.half > gpu.single for gpu in GPUS.values())
