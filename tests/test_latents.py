"""Latents of a tiny random autoencoder: stored once, learnt by the flows, decoded before anything is measured."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nfm.artifacts import load_tensors, read_json, sha256
from nfm.build.data import make_source, with_latents
from nfm.build.measure import load_reference, load_ruler, measure_split, reference_path
from nfm.config import parse_params, read_mapping, with_overrides
from nfm.data import autoencoder
from nfm.data.autoencoder import load_autoencoder
from nfm.data.shards import Split, from_uint8, to_uint8
from nfm.data.writing import write_splits
from nfm.errors import InputError
from nfm.plan.forecast import forecast, measure
from nfm.plan.size import data_size
from nfm.recipes import load_recipe
from nfm.stages.couple import couple
from nfm.stages.evaluate import evaluate_student, evaluate_teacher
from nfm.stages.features import features
from nfm.stages.prepare import prepare
from nfm.stages.reference import reference
from nfm.stages.report import report
from nfm.stages.student import student
from nfm.stages.teacher import teacher
from tests.pictures import save
from tests.test_config import ROOT
from tests.tiny import TINY

CPU = torch.device("cpu")
SCALE, SHIFT = 0.5, 0.1
DATA = {
    "kind": "latents",
    "images": {
        "kind": "folder",
        "folder": "images",
        "image_size": 16,
        "channels": 3,
        "filter": "box",
        "test_fraction": 0.3,
        "flips": True,
        "limit": None,
        "version": None,
        "validation": None,
        "seed": 0,
    },
    "autoencoder": "vae",
    "channels": 4,
    "factor": 2,
    "scale": SCALE,
    "shift": SHIFT,
    "keep": 12,
}


def make_autoencoder(folder, seed=0, levels=2, **options):
    """Writes an untrained AutoencoderKL that halves the side once a level after the first."""
    torch.manual_seed(seed)
    shape = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (4,) * levels,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 4,
    }
    AutoencoderKL(**{**shape, **options}).save_pretrained(folder)


def draw(root):
    rng = np.random.default_rng(0)
    for name in "ab":
        for i in range(20):
            save(root / "images" / name / f"{i}.png", rng.integers(0, 256, (16, 16, 3)).astype(np.uint8))


def params_of(**changed):
    overrides = {**TINY, "data": DATA, "couplings": ["independent", "teacher"], "teacher.patch": [2, 2]}
    overrides["student.patch"] = [2, 2]
    for key, value in changed.items():
        overrides["data"] = {**overrides["data"], key: value}
    return parse_params(with_overrides(read_mapping(ROOT / "params.yaml"), overrides), "params.yaml")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Images and an autoencoder."""
    monkeypatch.setenv("NFM_TRACKER", "none")
    draw(tmp_path)
    make_autoencoder(tmp_path / "vae")
    return tmp_path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project whose every stage has run, without the folder of the autoencoder after `prepare`."""
    root = tmp_path_factory.mktemp("latents")
    draw(root)
    make_autoencoder(root / "vae")
    params = params_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "none")
        flops = {"prepare": counted(prepare, root, params)}
        (root / "vae").rename(root / "away")
        features(root, params)
        reference(root, params)
        teacher(root, params, 0)
        for coupling in params.couplings:
            couple(root, params, coupling, 0)
            student(root, params, coupling, 0)
            flops["evaluate"] = counted(evaluate_student, root, params, coupling, 0)
        flops["evaluate-teacher"] = counted(evaluate_teacher, root, params, 0)
        report(root, params)
    (root / "flops.json").write_text(json.dumps(flops))
    return params, root


def counted(stage, *arguments):
    """Returns the FLOPs of a stage."""
    # torch's fused attention of the CPU is unknown to its own counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage(*arguments)
    return counter.get_total_flops()


def model_of(root):
    return AutoencoderKL.from_pretrained(root / "away").eval().requires_grad_(False)


def splits(root):
    return {name: Split.open(root / "artifacts/data" / name, verify=True) for name in ("train", "test")}


def test_every_stage_runs_on_latents_without_the_autoencoders_folder(ran):
    _, root = ran
    summary = json.loads((root / "results/summary.json").read_text())
    assert set(summary["fd"]) == {"independent", "teacher"}
    assert all(math.isfinite(value) for by_nfe in summary["fd"].values() for fd in by_nfe.values() for value in fd)
    assert (root / "report/index.html").is_file()


def test_latents_are_the_scaled_mean_of_the_posterior(ran):
    _, root = ran
    model = model_of(root)
    for split in splits(root).values():
        assert (split.shape, split.visible.shape) == ((4, 8, 8), (3, 16, 16))
        rows = torch.arange(len(split.visible))
        mean = model.encode(from_uint8(split.visible.raw(rows))).latent_dist.mean
        latents = split.images(rows)
        assert latents.dtype == torch.float32
        assert split.raw(rows).dtype == torch.float16
        torch.testing.assert_close(latents, SCALE * (mean - SHIFT), rtol=0, atol=2e-3)
        assert latents.std() > 0.01


def test_the_first_images_of_each_split_keep_their_pixels_and_labels(ran):
    _, root = ran
    found = splits(root)
    assert {name: (len(split), len(split.visible)) for name, split in found.items()} == {
        "train": (56, 12),
        "test": (12, 12),
    }
    for split in found.values():
        rows = torch.arange(12)
        torch.testing.assert_close(split.visible.labels(rows), split.labels(rows))


def test_a_mirror_image_is_encoded_by_itself(project):
    prepare(project, params_of(keep=100))
    (project / "vae").rename(project / "away")
    split, model = splits(project)["train"], model_of(project)
    pixels = split.visible.raw(torch.arange(len(split)))
    rows = {bytes(image): row for row, image in enumerate(pixels.numpy())}
    pairs = [(row, rows[bytes(image)]) for row, image in enumerate(pixels.flip(-1).numpy())]
    assert all(rows[bytes(pixels[there].flip(-1).numpy())] == here for here, there in pairs)
    here, there = torch.tensor(pairs).T
    mirrored = split.images(there)
    mean = model.encode(from_uint8(pixels[here].flip(-1))).latent_dist.mean
    torch.testing.assert_close(mirrored, SCALE * (mean - SHIFT), rtol=0, atol=2e-3)
    assert (mirrored - split.images(here).flip(-1)).abs().max() > 0.01


def test_samples_are_decoded_before_they_are_measured(ran):
    _, root = ran
    tensors, _ = load_tensors(root / "artifacts/evaluate/teacher-0/samples.safetensors")
    assert all(images.shape[1:] == (3, 16, 16) for name, images in tensors.items() if name.startswith("samples-"))
    test = load_reference(reference_path(root, "test"))
    assert (test.shape, test.learnt) == ((3, 16, 16), (4, 8, 8))
    decoder = load_autoencoder(root / "artifacts/reference/autoencoder.safetensors", test.autoencoder, CPU)
    z = splits(root)["test"].images(torch.arange(12))
    wanted = to_uint8(model_of(root).decode(z / SCALE + SHIFT).sample)
    assert (decoder.decode(z).int() - wanted.int()).abs().max() <= 1


def test_the_reference_is_of_real_pixels(ran):
    _, root = ran
    test = splits(root)["test"]
    reference = load_reference(reference_path(root, "test"))
    assert reference.statistics.count == len(test.visible) == 12
    again = measure_split(load_ruler(None, root, test.visible.shape, CPU), test.visible)
    torch.testing.assert_close(again.statistics.mean, reference.statistics.mean)


def with_folder(params):
    """Returns the params with the autoencoder where it was moved to."""
    return params.model_copy(update={"data": params.data.model_copy(update={"autoencoder": "away"})})


def test_planned_bytes_are_those_of_the_files(ran):
    params, root = ran
    planned = forecast(params, data_size(with_folder(params).data, root, None, None), disk=0)
    found = {artifact.path: artifact.bytes for artifact in planned.artifacts}
    for split in ("train", "test"):
        files = [f for f in (root / "artifacts/data" / split).iterdir() if f.suffix != ".json"]
        written = sum(file.stat().st_size for file in files)
        assert 0 <= written - found[f"artifacts/data/{split}"] < 40_000  # the header of the weights' file
    decoder = "artifacts/reference/autoencoder.safetensors"
    assert 0 <= (root / decoder).stat().st_size - found[decoder] < 40_000


def test_planned_flops_are_those_that_the_autoencoder_computes(ran):
    params, root = ran
    size = data_size(with_folder(params).data, root, None, None)
    planned = {stage.name: stage.flops / stage.runs for stage in forecast(params, size, disk=0).stages}
    for name, flops in json.loads((root / "flops.json").read_text()).items():
        assert planned[name] == pytest.approx(flops, rel=0.02), name


def test_every_unit_of_latents_is_measured(ran):
    params, root = ran
    size = data_size(with_folder(params).data, root, None, None)
    stages = forecast(params, size, disk=0).stages
    seconds = measure(params, size, stages, CPU, seconds=0.01)
    assert {"autoencoder.encode/8", "autoencoder.decode/8"} <= set(seconds)
    assert all(value > 0 for value in seconds.values())


def test_without_its_folder_the_autoencoder_is_planned_as_stable_diffusions(tmp_path):
    """Its 83.65 M weights, and 8 pixels along the side of a latent's place."""
    params = load_recipe("imagenet256")
    planned = forecast(params, data_size(params.data, tmp_path, None, None), disk=0)
    assert planned.parameters["autoencoder"] == pytest.approx(83.65e6, rel=0.001)


def test_a_config_that_is_damaged_is_one_sentence_for_the_plan_too(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text("{")
    with pytest.raises(InputError, match=r"vae/config\.json is no JSON"):
        data_size(params_of().data, tmp_path, 4, 2)
    (tmp_path / "vae/config.json").write_text('{"block_out_channels": [32, 33], "norm_num_groups": "x"}')
    with pytest.raises(InputError, match=r"diffusers refuses"):
        forecast(params_of(), data_size(params_of().data, tmp_path, 4, 2), disk=0)


def test_a_cut_off_prepare_goes_on_with_the_same_bytes_unless_the_autoencoder_is_another(project, monkeypatch):
    params, encode, calls = params_of(), autoencoder.Autoencoder.encode, []

    def write(name, last=math.inf):
        """Writes the splits, cut off after some shards; returns how many were encoded."""
        calls.clear()

        def counted(self, pixels):
            if len(calls) == last:
                raise KeyboardInterrupt
            calls.append(1)
            return encode(self, pixels)

        monkeypatch.setattr(autoencoder.Autoencoder, "encode", counted)
        source = with_latents(make_source(params.data, project), params.data, project, CPU)
        try:
            write_splits(project / name, source, seed=0, shard_bytes=4096)
        except KeyboardInterrupt:
            assert not (project / name / "train").exists()
        return len(calls)

    shards = write("whole")
    assert write("cut", 4) == 4
    assert write("cut") == shards - 4
    for path in (project / "whole").rglob("*.*"):
        assert sha256(path) == sha256(project / "cut" / path.relative_to(project / "whole")), path.name
    assert write("other", 4) == 4
    make_autoencoder(project / "vae", seed=1)
    assert write("other") == shards


def test_pixels_carry_no_trace_of_latents(project):
    section = {**DATA["images"], "flips": False, "limit": None}
    params = parse_params(with_overrides(read_mapping(ROOT / "params.yaml"), {"data": section}), "params.yaml")
    prepare(project, params)
    manifest = read_json(project / "artifacts/data/train/manifest.json")
    assert not {"autoencoder", "pixels"} & set(manifest)
    split = splits(project)["train"]
    assert split.visible is split
    assert split.autoencoder is None


# What a user gets wrong


def refused(project, match, **changed):
    with pytest.raises(InputError, match=match):
        prepare(project, params_of(**changed))
    assert not (project / "artifacts/data/train").exists()
    assert not (project / "metrics").exists()


def test_an_autoencoder_that_is_not_there_or_not_one_is_one_sentence(project):
    refused(
        project,
        r"data\.autoencoder is .*nowhere, which holds no config\.json; expected a folder",
        autoencoder="nowhere",
    )
    (project / "vae/config.json").write_text('{"_class_name": "UNet2DModel"}')
    refused(project, r"config\.json is of a UNet2DModel; expected")
    (project / "vae/config.json").write_text("{")
    refused(project, r"config\.json is damaged: .*fetch it again")


def test_damaged_weights_are_one_sentence(project):
    path = project / "vae/diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(project, r"whose weights cannot be read: .*fetch it again")
    path.unlink()
    refused(project, r"holds no diffusion_pytorch_model\.safetensors")
    make_autoencoder(project / "other", levels=3)
    shutil.copy(project / "other/diffusion_pytorch_model.safetensors", path)
    refused(project, r"whose weights")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"factor": 8}, r"data\.factor is 8, but the autoencoder in .*vae has 2; set data\.factor to 2"),
        ({"channels": 16}, r"data\.channels is 16, but the autoencoder in .*vae has 4"),
        ({"images": {**DATA["images"], "image_size": 15}}, r"data\.images has 15x15 pixels, which data\.factor = 2"),
        ({"images": {**DATA["images"], "channels": 1}}, r"data\.images has 1 channels, the autoencoder in .* takes 3"),
        ({"images": {**DATA["images"], "folder": "none"}}, r"data\.images\.folder is .*none, which is no folder"),
        ({"scale": 1e9}, r"not finite in float16 with data\.scale 1e\+09"),
    ],
)
def test_a_section_that_does_not_fit_is_one_sentence(project, changed, match):
    refused(project, match, **changed)


def test_a_scale_that_is_none_is_one_sentence():
    with pytest.raises(InputError, match=r"data\.\S*scale is 0\.0, expected greater than 0"):
        params_of(scale=0.0)


def test_latents_of_another_autoencoder_are_refused(ran, tmp_path):
    params, root = ran
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns(".checkpoints"))
    make_autoencoder(tmp_path / "copy/vae", seed=1)
    other = autoencoder.load_pretrained(tmp_path / "copy/vae", "data.autoencoder", SCALE, SHIFT, CPU)
    other.save(tmp_path / "copy/artifacts/reference/autoencoder.safetensors")
    with pytest.raises(InputError, match=r"is not the autoencoder that made the latents .*prepare and reference again"):
        evaluate_student(tmp_path / "copy", params, "independent", 0)


def test_without_diffusers_there_is_one_sentence(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl", None)
    refused(project, r"latents need the package diffusers, which is not installed")
