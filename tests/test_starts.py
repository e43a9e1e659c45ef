"""The benchmark that starts students from the teacher's noise of images."""

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import starts
from nfm.build.measure import load_measure
from nfm.config import parse_params, read_mapping, with_overrides
from nfm.coupling.base import Pairs
from nfm.coupling.teacher import TeacherOnline
from nfm.data.shards import Split
from nfm.metrics.fidelity import extract, frechet
from nfm.metrics.statistics import Accumulator
from tests.command import nfm
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]


def test_a_student_starts_from_the_noise_of_the_images_whose_labels_it_gets(tmp_path, monkeypatch):
    mapping = with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, "couplings": ["teacher"]})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(mapping, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFM_TRACKER", "none")
    for command in ("prepare", "features", "reference", "teacher", "couple --coupling teacher"):
        assert nfm(monkeypatch, *command.split()) == 0
    assert nfm(monkeypatch, "student", "--coupling", "teacher") == 0

    params, started = parse_params(mapping, "params"), []
    sampled, paired = starts._samples, TeacherOnline.pair
    pairs: list[Pairs] = []

    def pair(self, batch, generator):
        pairs.append(paired(self, batch, generator))
        return pairs[-1]

    def samples(model, noise, label, params):
        started.append((noise, label))
        return sampled(model, noise, label, params)

    monkeypatch.setattr(TeacherOnline, "pair", pair)
    monkeypatch.setattr(starts, "_samples", samples)
    found = list(starts.of_seed(tmp_path, params, 0))

    # From N(0, I) and from the teacher's noise, by the same labels; first of the training, then of the test images.
    assert len(started) == 4
    for (normal, given), (noise, label), pair in zip(started[::2], started[1::2], pairs, strict=True):
        assert torch.equal(noise, pair.noise)
        assert torch.equal(label, given)
        assert not torch.equal(normal, noise)
    for pair, side in zip(pairs, starts.SIDES, strict=True):
        _has(_split(tmp_path, side), pair)

    # Every NFE that is evaluated, Euler's where both solvers have it, and the images themselves.
    assert [(side, what, nfe) for side, what, nfe, _ in found] == [
        (side, *rest)
        for side in ("train", "test")
        for rest in [
            ("N(0, I)", "1"),
            ("N(0, I)", "5"),
            (f"noise of {side} images", "1"),
            (f"noise of {side} images", "5"),
            (f"{side} images themselves", ""),
        ]
    ]
    measure = load_measure(params.evaluate, tmp_path, starts.CPU)
    for pair, side, other in zip(pairs, ("train", "test"), (measure.test, measure.train), strict=True):
        accumulator = Accumulator()
        accumulator.add(extract(measure.ruler.extractor, measure.pixels(pair.data)))
        expected = frechet(other.statistics, accumulator.statistics())
        assert [v for s, what, _, v in found if what == f"{side} images themselves"] == [pytest.approx(expected)]


def _split(root: Path, name: str) -> Split:
    return Split.open(root / "artifacts" / "data" / name)


def _has(split: Split, pairs: Pairs) -> None:
    """Checks that all images of some pairs are in a split, with their labels."""
    rows = torch.arange(len(split))
    data, label = split.images(rows), split.labels(rows)
    assert label is not None
    assert pairs.label is not None
    for image, c in zip(pairs.data, pairs.label, strict=True):
        assert ((data == image).flatten(1).all(1) & (label == c)).any()
