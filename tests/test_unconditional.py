"""Images without labels: what stands in for classes, and every stage on them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nfm.artifacts import load_tensors
from nfm.build.features import features_arguments
from nfm.config import parse_params, read_mapping, with_overrides
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.metrics.features import rotate, rotation_loss
from nfm.random import generator_for
from nfm.stages.couple import couple
from nfm.stages.evaluate import evaluate_student, evaluate_teacher
from nfm.stages.features import features
from nfm.stages.prepare import prepare
from nfm.stages.reference import reference
from nfm.stages.report import report
from nfm.stages.student import student
from nfm.stages.teacher import teacher
from tests.test_config import ROOT
from tests.tiny import TINY

COUPLINGS = ("independent", "minibatch-ot", "semidiscrete-ot", "teacher")
UNLABELLED = {
    **TINY,
    "data": {
        "kind": "folder",
        "folder": "images",
        "image_size": 8,
        "channels": 1,
        "filter": "box",
        "test_fraction": 0.3,
        "flips": False,
        "limit": None,
        "version": None,
        "validation": None,
        "seed": 0,
    },
    "couplings": list(COUPLINGS),
    "teacher.conditional": False,
    "student.conditional": False,
    "features.train.steps": 40,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project on images in a single folder, bright at the top, whose every stage has run."""
    root = tmp_path_factory.mktemp("unlabelled")
    (root / "images" / "all").mkdir(parents=True)
    ramp = np.linspace(255, 0, 8)[:, None].repeat(8, 1)
    for i, noise in enumerate(np.random.default_rng(0).uniform(0.7, 1, (60, 8, 8))):
        Image.fromarray((noise * ramp).astype(np.uint8)).save(root / "images" / "all" / f"{i}.png")
    params = parse_params(with_overrides(read_mapping(ROOT / "params.yaml"), UNLABELLED), "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "none")
        prepare(root, params)
        features(root, params)
        reference(root, params)
        teacher(root, params, 0)
        for name in COUPLINGS:
            couple(root, params, name, 0)
            student(root, params, name, 0)
            evaluate_student(root, params, name, 0)
        evaluate_teacher(root, params, 0)
        report(root, params)
    return root


def test_every_stage_runs_without_labels(trained):
    assert Split.open(trained / "artifacts" / "data" / "train").classes == ()
    summary = json.loads((trained / "results" / "summary.json").read_text())
    assert set(summary["fd"]) == set(COUPLINGS)
    assert all(values["1"][0] > 0 for values in summary["fd"].values())
    assert not any(summary["accuracy"].values())  # there is no class that a sample could have
    assert summary["teacher"]["fd_denoised"] > 0


def test_features_of_unlabelled_images_tell_turns_and_say_so(trained):
    _, header = load_tensors(trained / "artifacts" / "features" / "features.safetensors")
    assert header["task"] == "rotation"
    metrics = json.loads((trained / "metrics" / "features.json").read_text())
    assert metrics["task"] == "rotation"
    assert metrics["accuracy"] > 0.9  # a guess is right in 0.25
    assert header["model"]["classes"] == 4
    assert "fd_images_rot_20" in (trained / "metrics" / "evaluate" / "teacher-0.json").read_text()
    assert "quarter turns" in (trained / "report" / "index.html").read_text()


def test_each_image_is_turned_by_its_own_number_of_quarters():
    corner = torch.zeros(4, 1, 3, 3)
    corner[:, :, 0, 0] = 1  # upper left, which turns left to lower left
    turned = rotate(corner, torch.tensor([0, 1, 2, 3]))
    assert turned[:, 0].flatten(1).argmax(1).tolist() == [0, 6, 8, 2]


def test_the_loss_of_turns_asks_for_the_turn_that_was_made():
    class Oracle(torch.nn.Module):
        """Finds the brightest quadrant."""

        def forward(self, x):
            quadrant = torch.nn.functional.avg_pool2d(x, 4).flatten(1)  # of the four, row by row
            return 50 * quadrant[:, [0, 2, 3, 1]]

    data = torch.full((64, 1, 8, 8), -1.0)
    data[:, :, :4, :4] = 1
    loss = rotation_loss(Oracle(), data, generator_for(0))
    wrong = rotation_loss(Oracle(), data.flip(3), generator_for(0))
    # Labels are smoothed by 0.1 over four classes: a sure and right answer pays for 3/4 of that.
    assert loss < 10 < wrong


def test_images_that_cannot_be_turned_need_classes():
    params = parse_params(read_mapping(ROOT / "params.yaml"), "params.yaml")
    with pytest.raises(InputError, match="8x16 pixels"):
        features_arguments(params.features, (1, 8, 16), 0)
    assert features_arguments(params.features, (1, 8, 16), 3)["classes"] == 3
