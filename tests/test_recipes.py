"""Recipes: complete, built on shapes alone at their own size, and run for two steps with every size shrunk."""

import hashlib
from functools import partial

import numpy as np
import pytest
import yaml

from nfm.build import data as build_data
from nfm.config import parse_params
from nfm.data import idx
from nfm.data.source import cifar10
from nfm.nn.patches import token_shape
from nfm.plan import count
from nfm.plan.networks import make_networks
from nfm.plan.size import data_size
from nfm.recipes import load_recipe, recipe_names, recipe_text, smoke, smoke_text
from nfm.stages.couple import couple
from nfm.stages.evaluate import evaluate_student, evaluate_teacher
from nfm.stages.features import features
from nfm.stages.prepare import prepare
from nfm.stages.reference import reference
from nfm.stages.report import report
from nfm.stages.student import student
from nfm.stages.teacher import teacher
from tests.pictures import save
from tests.test_cifar10 import contents, pack
from tests.test_cli import nfm
from tests.test_data import idx_bytes
from tests.test_latents import make_autoencoder

RECIPES = recipe_names()
RNG = np.random.default_rng(0)


def write_mnist(root, monkeypatch):
    hashes = {}
    for split, images in (("train", 40), ("t10k", 20)):
        for kind, array in (
            ("images-idx3", RNG.integers(0, 256, (images, 28, 28))),
            ("labels-idx1", np.arange(images) % 10),
        ):
            name = f"{split}-{kind}-ubyte"
            content = idx_bytes(array)
            (root / "data" / "mnist").mkdir(parents=True, exist_ok=True)
            (root / "data" / "mnist" / name).write_bytes(content)
            hashes[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(idx, "MNIST", hashes)


def write_cifar10(root, monkeypatch):
    path = root / "data" / "cifar-10-python.tar.gz"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(build_data, "cifar10", partial(cifar10, md5=pack(path, contents(6))))


def write_imagenet(root, monkeypatch):
    for split, images in (("train", 10), ("val", 5)):
        for wnid in ("n01440764", "n01443537", "n01484850"):
            for i in range(images):
                pixels = RNG.integers(0, 256, (20, 24, 3)).astype(np.uint8)
                save(root / "data" / "imagenet" / split / wnid / f"{wnid}_{i}.JPEG", pixels)


def write_latents(root, monkeypatch):
    write_imagenet(root, monkeypatch)
    make_autoencoder(root / "inputs" / "autoencoder", levels=4)


FILES = {"mnist": write_mnist, "cifar10": write_cifar10, "imagenet": write_imagenet, "latents": write_latents}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_data_set_at_its_own_size(name, tmp_path):
    params = load_recipe(name)
    size = data_size(params.data, tmp_path, None, None)
    networks = make_networks(params, size)
    assert count.velocity_cost(networks.student).flops > 0
    assert count.encode_cost(networks.teacher).flops > 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_shrunk_recipe_keeps_its_structure_and_is_small(name):
    mapping = yaml.safe_load(recipe_text(name))
    before = yaml.safe_dump(mapping)
    small = smoke(mapping)
    assert yaml.safe_dump(mapping) == before
    params = parse_params(small, name)
    full = load_recipe(name)
    assert params.couplings == full.couplings
    assert params.data.kind == full.data.kind
    for section in ("teacher", "student"):
        there, here = getattr(full, section), getattr(params, section)
        assert (here.patch, here.conditional, here.train.precision) == (
            there.patch,
            there.conditional,
            there.train.precision,
        )
        assert here.train.steps == 2
        assert here.width <= 16
    assert (params.run.micro_batch is None) == (full.run.micro_batch is None)
    assert params.evaluate.samples == 10
    assert parse_params(yaml.safe_load(smoke_text(name)), name) == params


@pytest.mark.parametrize("name", [name for name in RECIPES if load_recipe(name).data.kind in FILES])
def test_a_shrunk_recipe_runs_every_stage(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_TRACKER", "none")
    params = parse_params(yaml.safe_load(smoke_text(name)), name)
    FILES[params.data.kind](tmp_path, monkeypatch)
    prepare(tmp_path, params)
    features(tmp_path, params)
    reference(tmp_path, params)
    teacher(tmp_path, params, 0)
    for coupling in params.couplings:
        couple(tmp_path, params, coupling, 0)
        student(tmp_path, params, coupling, 0)
        evaluate_student(tmp_path, params, coupling, 0)
    evaluate_teacher(tmp_path, params, 0)
    report(tmp_path, params)
    assert (tmp_path / "results" / "summary.json").is_file()


@pytest.mark.parametrize(("name", "token"), [("imagenet64", 48), ("imagenet256", 16)])
def test_the_imagenet_recipes_are_the_papers(name, token, tmp_path):
    """NFM, arXiv 2603.09014: SiT-XL/4 and SiT-XL/2 on 256 Mi samples, a teacher on 512 Mi."""
    params = load_recipe(name)
    train = params.student.train
    assert train.steps * train.batch == 256 * 2**20
    assert params.teacher.train.steps * params.teacher.train.batch == 512 * 2**20
    size = data_size(params.data, tmp_path, None, None)
    assert token_shape(size.shape, params.student.patch) == (256, token)
    assert count.parameters(make_networks(params, size).student) == pytest.approx(675e6, rel=0.005)


def test_the_teacher_of_imagenet_64_has_the_papers_noise():
    assert load_recipe("imagenet64").teacher.noise_std == 0.05


def test_the_command_writes_a_shrunk_recipe_which_another_recipe_may_replace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, params in (
        (["recipe", "mnist16", "--smoke"], smoke_text("mnist16")),
        (["recipe", "mnist16"], recipe_text("mnist16")),
    ):
        assert nfm(monkeypatch, *arguments) == 0
        assert (tmp_path / "params.yaml").read_text() == params
    assert nfm(monkeypatch, "plan", "--gpu", "a100", "--disk", "5") == 0
    assert "60,000 images to train on" in capsys.readouterr().out
