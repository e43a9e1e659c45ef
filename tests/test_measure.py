"""What samples are held against: Inception's weights, references, names, and what may not be compared."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from nfm.artifacts import load_tensors, save_tensors
from nfm.build.features import load_features, make_features, save_features
from nfm.build.measure import features_path, load_measure, load_reference, reference_path
from nfm.config import INCEPTION, load_params, parse_params, read_mapping, with_overrides
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.writing import write_splits
from nfm.errors import InputError
from nfm.metrics.fidelity import classifier_extractor, extract, fidelity, inception
from nfm.metrics.statistics import Accumulator
from nfm.metrics.yardstick import measure_names, shared_yardstick
from nfm.random import generator_for
from nfm.solve.draws import Draws
from nfm.solve.sample import initial_noise
from tests.command import nfm

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def pixels(count, shape, seed, low=0.2):
    """Noise whose contrast differs from image to image, from `low` to all."""
    generator = generator_for(seed)
    contrast = low + (1 - low) * torch.rand(count, 1, 1, 1, generator=generator)
    return (255 * torch.rand(count, *shape, generator=generator) * contrast).to(torch.uint8)


def project(folder, monkeypatch, train, test, labels=None, **overrides):
    """A project with images and an untrained classifier, in the current folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NFM_TRACKER", "none")
    params = with_overrides(read_mapping(ROOT / "params.yaml"), overrides)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    classes = () if labels is None else ("a", "b")
    splits = [
        Examples.of(images, None if labels is None else torch.arange(len(images)) % 2) for images in (train, test)
    ]
    source = Source("digits", tuple(test.shape[1:]), classes, *splits, "box filter")
    write_splits(folder / "artifacts" / "data", source, seed=0)
    arguments = {"shape": list(test.shape[1:]), "classes": 2, "width": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_features(features_path(folder), make_features(arguments), arguments, "class")
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project whose references are measured on the classifier's features."""
    images = [pixels(count, (1, 8, 8), seed) for seed, count in enumerate((230, 120))]
    folder = project(tmp_path, monkeypatch, *images, labels=True, **{"evaluate.samples": 90})
    assert nfm(monkeypatch, "reference") == 0
    return folder


def refused(monkeypatch, capsys, *arguments):
    """Runs a command that must end with status 2 and one sentence, and change no file; returns the sentence."""
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in Path.cwd().rglob("*") if p.is_file()}
    assert nfm(monkeypatch, *arguments) == 2
    assert {p: p.stat().st_mtime_ns for p in Path.cwd().rglob("*") if p.is_file()} == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def measure_of(folder):
    return load_measure(load_params(folder / "params.yaml").evaluate, folder, CPU)


# Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file of torch-fidelity's Inception, drawn so that the signal keeps its size through the layers."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = FeatureExtractorInceptionV3("net", ["2048"], feature_extractor_weights_path="none")
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(net.state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_our_path_measures_what_torch_fidelitys_own_command_does(weights, tmp_path, monkeypatch, capsys):
    """From PNGs: fetch, reference, then samples in two batches, against the command on the folders."""
    path, checksum = weights
    # Half of either set is unlike the other: plain colours here, negatives there.
    real, fake = pixels(10, (3, 8, 8), 0), pixels(10, (3, 8, 8), 1, low=0.05)
    real[::2] = pixels(5, (3, 1, 1), 2, low=1)
    fake[::2] = 255 - fake[::2]
    overrides = {"evaluate.samples": 10, "evaluate.inception": {"source": str(path), "sha256": checksum}}
    folder = project(tmp_path, monkeypatch, real.flip(0), real, **overrides)
    theirs = by_command(folder, path, {"real": real, "fake": fake})
    assert [nfm(monkeypatch, command) for command in ("fetch", "reference")] == [0, 0]
    assert "FID is not measured" not in capsys.readouterr().out
    measure = measure_of(folder)
    tally = measure.tally([])
    for part in fake.split(7):
        tally.add(part, None)
    ours = tally.figures()
    assert list(measure.names.values()) == ["fid_10", "fid_10_train", "kid_10", "precision_10", "recall_10"]
    # Their means and kernels are in float32, which costs some 1e-7 of either.
    assert ours["fd"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["fd_train"] == pytest.approx(ours["fd"], rel=1e-6)  # the same images, in another order
    for name, key in {"kid": "kernel_inception_distance_mean", "precision": "precision", "recall": "recall"}.items():
        assert ours[name] == pytest.approx(theirs[key], abs=1e-6)
        assert 0.1 < ours[name] < 1


def by_command(folder, weights, images):
    """What torch-fidelity's command line says of the images as PNGs."""
    for name, pixels in images.items():
        (folder / name).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f"{i:02}.png")
    options = (
        "--fid --kid --prc --json --silent --cpu --no-cache --save-cpu-ram --feature-extractor inception-v3-compat"
    )
    options += " --input1 fake --input2 real --kid-subsets 20 --kid-subset-size 10 --rng-seed 0"
    program = Path(sys.executable).with_name("fidelity")
    answer = subprocess.run(
        [program, *options.split(), "--feature-extractor-weights-path", weights],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(answer.stdout)


def test_grey_images_reach_inception_as_three_equal_channels(weights):
    extractor = inception(*weights, CPU)
    grey = pixels(2, (1, 8, 8), 0)
    features = extract(extractor, grey)
    assert features.shape == (2, 2048)
    assert torch.equal(features, extract(extractor, grey.expand(2, 3, 8, 8)))


class Harm:
    """What a pickle may do to those who open it."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


NOT_WEIGHTS = {
    "a pickle with code": lambda path: torch.save({"fc.weight": Harm()}, path),
    "other weights": lambda path: torch.save({"fc.weight": torch.zeros(2, 2)}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "no pickle": lambda path: path.write_bytes(b"<html>not found</html>"),
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("write", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS.keys())
def test_a_file_of_the_right_checksum_that_holds_no_weights_is_refused_and_runs_nothing(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "inception.pth"
    write(path)
    with pytest.raises(InputError, match=r"inception\.pth is no state dict of torch-fidelity's Inception \("):
        inception(path, hashlib.sha256(path.read_bytes()).hexdigest(), CPU)
    assert not (tmp_path / "harmed").exists()


# Fetching


CONTENT = bytes(range(256)) * 8192  # two chunks
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def address():
    """A server with the file, with half of it, and with nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/whole", "/half") else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2 if self.path == "/half" else None])

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def name_inception(folder, source, sha256=CHECKSUM):
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {"evaluate.inception": None})
    params["evaluate"]["inception"] = {"source": source, "sha256": sha256}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize("place", ["url", "path"])
def test_fetch_brings_the_file_once(tmp_path, monkeypatch, address, capsys, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    name_inception(tmp_path, f"{address}/whole" if place == "url" else "mine.pth")
    assert nfm(monkeypatch, "fetch") == 0
    assert [p.read_bytes() for p in (tmp_path / "inputs").iterdir()] == [CONTENT]
    name_inception(tmp_path, "gone.pth")
    assert nfm(monkeypatch, "fetch") == 0
    assert "inputs/inception.pth is there" in capsys.readouterr().out


MISTAKES = {
    "another checksum": ("/whole", "0" * 64, f"{len(CONTENT)} bytes of SHA-256 {CHECKSUM}"),
    "half of it": ("/half", CHECKSUM, f"evaluate.inception.sha256 is {CHECKSUM}|cannot be read"),
    "no such page": ("/none", CHECKSUM, "cannot be read (HTTP Error 404"),
    "no such host": ("http://127.0.0.1:1/whole", CHECKSUM, "cannot be read"),
    "no such file": ("gone.pth", CHECKSUM, "gone.pth cannot be read"),
    "a folder": ("folder", CHECKSUM, "folder cannot be read"),
}


@pytest.mark.parametrize(("source", "checksum", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_what_is_not_the_file_takes_no_place(tmp_path, monkeypatch, address, capsys, source, checksum, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "inputs").mkdir()
    (tmp_path / INCEPTION).write_bytes(b"the old one")
    name_inception(tmp_path, address + source if source.startswith("/") else source, checksum)
    sentence = refused(monkeypatch, capsys, "fetch")
    assert any(word in sentence for word in words.split("|")), sentence


def test_with_no_weights_named_fetch_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert nfm(monkeypatch, "fetch") == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert not (tmp_path / "inputs").exists()


@pytest.mark.parametrize("value", ["weights.pth", {"source": "x"}, {"source": "x", "sha256": "6726825d"}])
def test_inception_is_named_with_its_whole_checksum(value):
    params = read_mapping(ROOT / "params.yaml")
    params["evaluate"]["inception"] = value
    with pytest.raises(InputError, match=r"evaluate\.inception") as caught:
        parse_params(params, "params.yaml")
    assert "\n" not in str(caught.value)


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "half": lambda path: path.write_bytes(CONTENT[: len(CONTENT) // 2]),
    "another": lambda path: path.write_bytes(CONTENT[::-1]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("command", [["reference"], ["evaluate", "--teacher"]], ids=lambda words: words[0])
def test_stages_refuse_weights_that_are_not_those_named(small, monkeypatch, capsys, damage, command):
    name_inception(small, "mine.pth")
    (small / "mine.pth").write_bytes(CONTENT)
    assert nfm(monkeypatch, "fetch") == 0
    teacher = small / "artifacts" / "teacher" / "0" / "teacher.safetensors"
    save_tensors(teacher, {}, {})
    damage(small / INCEPTION)
    sentence = refused(monkeypatch, capsys, *command)
    assert "inputs/inception.pth" in sentence
    assert "`python -m nfm fetch`" in sentence


# References


def test_a_reference_holds_statistics_and_what_they_are_of(small, capsys):
    for split, count in {"train": 230, "test": 120}.items():
        reference = load_reference(reference_path(small, split))
        images = Split.open(small / "artifacts" / "data" / split)
        classifier = load_features(features_path(small), images.shape, CPU).model
        features = extract(classifier_extractor(classifier), images.raw(torch.arange(count))).double().numpy()
        assert reference.statistics.count == count
        np.testing.assert_allclose(reference.statistics.mean, features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(reference.statistics.covariance, np.cov(features, rowvar=False), atol=1e-15)
        assert torch.equal(reference.labels, images.labels(torch.arange(count)))
        assert reference.resize == "box filter"
        digest = hashlib.sha256(features_path(small).read_bytes()).hexdigest()
        assert reference.features == f"64 of a classifier {digest[:16]}"


def test_without_inception_one_sentence_says_so_and_how_to_name_it(small, monkeypatch, capsys):
    assert nfm(monkeypatch, "reference") == 0
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("FID is not measured")
    assert "`python -m nfm fetch`" in line


def test_too_few_images_to_measure_against_are_refused(tmp_path, monkeypatch, capsys):
    project(tmp_path, monkeypatch, pixels(9, (1, 8, 8), 0), pixels(3, (1, 8, 8), 1))
    assert "test holds 3 images, expected at least 4" in refused(monkeypatch, capsys, "reference")


def test_references_of_other_features_are_refused(small):
    measure_of(small)
    path = reference_path(small, "test")
    tensors, header = load_tensors(path)
    for word in ("dataset", "features", "resize"):
        save_tensors(path, tensors, header | {word: "others"})
        with pytest.raises(InputError, match=f"{word} ['\"].*; they cannot be compared"):
            measure_of(small)


def test_features_trained_since_the_reference_was_made_are_refused(small):
    arguments = {"shape": [1, 8, 8], "classes": 2, "width": 8}
    save_features(features_path(small), make_features(arguments), arguments, "class")
    with pytest.raises(InputError, match=r"train\.safetensors was measured with features '64 of a classifier"):
        measure_of(small)


# Samples


@pytest.mark.parametrize("batch", [1, 7, 90])
def test_the_figures_of_samples_do_not_depend_on_their_batch(small, batch):
    measure, images = measure_of(small), pixels(90, (1, 8, 8), 5, low=0.1)
    label = torch.arange(90) % 3
    tally, whole = measure.tally([30, 2, 89]), Accumulator()
    for part, c in zip(images.split(batch), label.split(batch), strict=True):
        tally.add(part, c)
    whole.add(extract(measure.ruler.extractor, images))
    figures, against = tally.figures(), {}
    for key, split in {"fd": "test", "fd_train": "train"}.items():
        against[key] = fidelity(load_reference(reference_path(small, split)).statistics, whole.statistics()).fd
    # float32 features, which batches round differently.
    assert {key: figures[key] for key in against} == pytest.approx(against, rel=1e-5)
    assert figures["fd"] != pytest.approx(figures["fd_train"], rel=1e-3)
    right = (measure.classifier(images).argmax(dim=1) == label).sum().item()
    assert figures["accuracy"] == right / 90
    assert torch.equal(tally.images(), images[[30, 2, 89]])


def test_samples_are_let_go_once_they_are_counted(small):
    tally = measure_of(small).tally([3])
    for step in range(6):
        array = pixels(10, (1, 8, 8), step).numpy().copy()
        alive = weakref.ref(array)
        tally.add(torch.from_numpy(array), None)
        del array
        assert alive() is None
    assert "accuracy" not in tally.figures()


def test_draws_are_functions_of_their_number_and_as_frequent_as_the_labels():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    draws = Draws(15, (1, 2, 2), 3, labels, CPU)
    for batch in (1, 4, 20):
        noise, label = (torch.cat(parts) for parts in zip(*draws.parts(batch), strict=True))
        assert torch.equal(noise, initial_noise(15, (1, 2, 2), 3))
        assert torch.equal(label[:6].sort().values, labels)
        assert torch.equal(label[6:12], label[:6])
        assert torch.equal(label[12:], label[:3])
    order = torch.randperm(6, generator=generator_for(3, 0, 1))
    assert torch.equal(label, labels[order[torch.arange(15) % 6]])
    assert [label[row].item() for row in draws.shown(10)] == [0, 1, 2]
    assert all((label[:row] != label[row]).all() for row in draws.shown(10))
    assert len(draws.shown(2)) == 2


def test_draws_without_labels_show_the_first():
    draws = Draws(15, (2,), 0, None, CPU)
    assert draws.shown(10) == list(range(10))
    assert all(label is None for _, label in draws.parts(4))
    assert [len(part) for part in draws.first(99) if isinstance(part, Tensor)] == [15]


# Names and what may be compared


@pytest.mark.parametrize(
    ("dataset", "samples", "options", "name"),
    [
        ("digits", 1000, {}, "fd_digits_1k"),
        ("digits", 540, {}, "fd_digits_540"),
        ("digits", 1500, {}, "fd_digits_1500_train"),
        ("digits", 1000, {}, "kid_digits_1k"),
        ("My Photos (2)", 50_000, {}, "fd_my-photos-2_50k"),
        ("photos", 1000, {"rotation": True}, "fd_photos_rot_1k_train"),
        ("photos", 1000, {"rotation": True}, "recall_photos_rot_1k"),
        ("digits", 50_000, {"inception": True}, "fid_50k"),
        ("digits", 50_000, {"inception": True}, "fid_50k_train"),
        ("digits", 50_000, {"inception": True}, "precision_50k"),
    ],
)
def test_a_measures_name_has_features_and_count(dataset, samples, options, name):
    names = measure_names(dataset, samples, **({"inception": False} | options)).values()
    assert name in names
    assert len(set(names)) == 5
    assert all(re.fullmatch(r"[\w./ -]+", each) for each in names)  # what MLflow takes for a metric


YARDSTICK = {"fd": "fd_digits_1k", "features": "64 of a", "resize": "box", "samples": 1000, "test": 5, "train": 9}


@pytest.mark.parametrize("word", YARDSTICK)
def test_figures_of_another_yardstick_are_refused_in_one_sentence_with_both(word):
    assert shared_yardstick(dict.fromkeys("abc", YARDSTICK)) == YARDSTICK
    with pytest.raises(InputError) as caught:
        shared_yardstick({"a": YARDSTICK, "b": YARDSTICK, "c": YARDSTICK | {word: "other"}})
    sentence = f"c was measured with {word} 'other', a with {YARDSTICK[word]!r}; they cannot be compared"
    assert str(caught.value).startswith(sentence)
    with pytest.raises(InputError, match="c was measured with"):
        shared_yardstick({"a": YARDSTICK, "c": {k: v for k, v in YARDSTICK.items() if k != word}})


def test_a_figure_that_does_not_say_what_it_was_measured_with_is_refused():
    with pytest.raises(InputError, match="b does not say"):
        shared_yardstick({"a": YARDSTICK, "b": None})
