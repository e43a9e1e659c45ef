"""A student that is asked for images: by rows, by HTTP, by command; and what it refuses."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from benchmarks.serve import read
from nfm.artifacts import sha256
from nfm.build.student import load_student
from nfm.data.shards import to_uint8
from nfm.errors import InputError
from nfm.random import generator_for
from nfm.registry.client import open_registry
from nfm.serving.answer import answer
from nfm.serving.requests import Request
from nfm.serving.sampler import Sampler, open_sampler
from nfm.tracking import open_tracker
from tests.servers import free_port, wait_for_answer
from tests.students import save_random_student

ROW = {"label": 1, "seed": 7, "nfe": 2, "solver": "euler", "guidance": 1.0}
ROWS = [
    ROW,
    {**ROW, "seed": 8},
    {**ROW, "label": None},
    {**ROW, "guidance": 3.0},
    {**ROW, "nfe": 3, "solver": "heun"},
    {**ROW, "nfe": 4, "solver": "midpoint"},
]
# Of the folder of a model alone, as whoever has fetched it has it.
ALONE = """
import importlib.util, json, sys
import mlflow, pandas
assert importlib.util.find_spec("nfm") is None
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pandas.DataFrame([json.loads(sys.argv[2])]))
import nfm
assert nfm.__file__.startswith(sys.argv[1]), nfm.__file__
print(json.dumps({"image": answer["image"][0], "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
# What is changed in a row, and what the sentence says.
REFUSED = [
    ({"label": 3}, "label is 3, expected 0 to 2"),
    ({"label": -1}, "label is -1, expected 0 to 2"),
    ({"seed": -1}, "seed is -1, expected 0"),
    ({"nfe": 0}, "nfe is 0, expected 1 to 256"),
    ({"nfe": 10**9}, "nfe is 1000000000, expected 1 to 256"),
    ({"solver": "rk4"}, "solver is 'rk4', expected euler, heun or midpoint"),
    ({"solver": "heun", "nfe": 2}, "nfe is 2, expected one of 1, 3, 5"),
    ({"solver": "dopri5"}, "take euler, heun or midpoint"),
    ({"guidance": float("nan")}, "guidance is nan, expected a number"),
    ({"label": None, "guidance": 2.0}, "without a label"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_student(tmp_path_factory.mktemp("weights") / "student.safetensors")


@pytest.fixture(scope="module")
def sampler(weights: Path) -> Sampler:
    return open_sampler(weights, {"model": "nfm-digits", "version": "1"})


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows)).astype({"label": "Int64"})


def pictures(answered: pd.DataFrame) -> list[bytes]:
    return [base64.b64decode(text) for text in answered["image"]]


def said_by(picture: bytes) -> dict[str, Any]:
    """The text chunk of a PNG."""
    return json.loads(Image.open(io.BytesIO(picture)).info["nfm"])


def test_a_row_gives_the_same_bytes_in_any_batch_and_order(sampler: Sampler):
    alone = [pictures(answer(sampler, frame(row)))[0] for row in ROWS]
    assert len(set(alone)) == len(ROWS)
    order = np.random.default_rng(0).permutation(40) % len(ROWS)
    together = pictures(answer(sampler, frame(*[ROWS[i] for i in order])))
    assert together == [alone[i] for i in order]


def test_an_image_is_where_the_noise_of_its_seed_ends(weights: Path, sampler: Sampler):
    model = load_student(weights, torch.device("cpu")).model
    x, label = torch.randn(1, 8, 8, generator=generator_for(7, 0))[None], torch.tensor([1])
    for t, s in ((1.0, 0.25), (0.25, 0.0)):  # two Euler steps over t_i = (1 - i/2)^2
        x = x + (s - t) * model(x, torch.tensor([t]), label)
    image = sampler.image(Request(**ROW))
    assert (image.int() - to_uint8(x)[0].int()).abs().max() <= 1  # the last bit may round the other way


def test_a_picture_says_what_it_shows(sampler: Sampler):
    [picture] = pictures(answer(sampler, frame(ROW)))
    assert said_by(picture) == {"model": "nfm-digits", "version": "1", **ROW}
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    assert (pixels == sampler.image(Request(**ROW)).numpy()[0]).all()


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_a_request_that_cannot_be_answered_is_refused_by_its_row(sampler: Sampler, change: dict, sentence: str):
    with pytest.raises(InputError, match="row 1: .*" + sentence.replace("^", r"\^")):
        answer(sampler, frame(ROW, {**ROW, **change}))


def test_a_student_is_asked_for_no_more_than_it_knows(tmp_path: Path):
    unconditional = open_sampler(save_random_student(tmp_path / "a.safetensors", classes=None), {})
    with pytest.raises(InputError, match="label is 1, but this student knows no classes"):
        unconditional.image(Request(**ROW))
    assert unconditional.image(replace(Request(**ROW), label=None)).shape == (1, 8, 8)
    one_step = open_sampler(save_random_student(tmp_path / "b.safetensors", one_step=True), {})
    with pytest.raises(InputError, match="takes a single step"):
        one_step.image(Request(**ROW))
    with pytest.raises(InputError, match="makes latents"):
        open_sampler(save_random_student(tmp_path / "c.safetensors", shape=[4, 8, 8]), {})


def test_a_picture_in_colour_has_its_channels_in_order(tmp_path: Path):
    sampler = open_sampler(save_random_student(tmp_path / "a.safetensors", shape=[3, 8, 8], classes=None), {})
    request = {**ROW, "label": None}
    [picture] = pictures(answer(sampler, frame(request)))
    image = sampler.image(Request(**request))
    assert (np.asarray(Image.open(io.BytesIO(picture))) == image.movedim(0, 2).numpy()).all()


def test_too_many_rows_are_refused_before_any_is_answered(sampler: Sampler):
    with pytest.raises(InputError, match="1025 rows, expected at most 1024"):
        answer(sampler, frame(*[ROW] * 1025))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, database: Path, weights: Path) -> Path:
    """A project whose student is published; also as DVC's file, with the record of its run."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copyfile(database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "mlflow")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        path = folder / "artifacts" / "student" / "teacher-0" / "student.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(weights.read_bytes())
        with open_tracker("student@teacher-0", folder) as tracker:
            tracker.tags({"git.commit": "c0ffee", "dvc.stage_hash": "abc"})
            tracker.model(path)
        record = {"run_id": tracker.run_id, "key": "abc", "stage": "student@teacher-0"}
        (folder / "artifacts" / "runs").mkdir()
        (folder / "artifacts" / "runs" / "student@teacher-0.json").write_text(json.dumps(record))
        tags = {"git.commit": "c0ffee"}
        open_registry(folder).publish(path, "nfm-digits", run_id=tracker.run_id, tags=tags, description="A student.")
    return folder


def environment_of(project: Path) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[str]:
    """`mlflow models serve` of the champion; its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/nfm-digits@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (project / "server.log").open("w") as log:
        started = subprocess.Popen(
            command, cwd=project, env=environment_of(project), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/ping", started)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)


def ask(server: str, content: Any, kind: str = "application/json") -> tuple[int, str]:
    """Posts to the server; returns status and body."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{server}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as given:
            return given.status, given.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def rows(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"dataframe_records": [{**ROW, **change} for change in changes]}


def served(server: str, content: Any) -> list[bytes]:
    status, body = ask(server, content)
    assert status == 200, body
    return [base64.b64decode(row["image"]) for row in json.loads(body)["predictions"]]


def test_the_server_gives_the_images_that_the_file_gives(server: str, sampler: Sampler, weights: Path, project: Path):
    [one] = served(server, rows({}))
    many = served(server, rows(*[{"seed": seed} for seed in range(256)]))
    assert len(many) == 256
    assert many[7] == one
    assert (np.asarray(Image.open(io.BytesIO(one))) == sampler.image(Request(**ROW)).numpy()[0]).all()
    said = said_by(one)
    version = open_registry(project).find("nfm-digits", "champion")
    assert said.items() >= {"model": "nfm-digits", "version": "1", "weights.sha256": sha256(weights), **ROW}.items()
    assert (said["run_id"], said["git.commit"]) == (version.run_id, "c0ffee")
    without = {key: value for key, value in ROW.items() if key != "label"}
    [unlabelled] = served(server, {"dataframe_records": [without]})
    assert said_by(unlabelled)["label"] is None
    # A row without a label beside one with it; and a guidance that JSON has as an integer.
    assert served(server, rows({"label": None}, {"guidance": 1})) == [unlabelled, one]


BAD = {
    "label beyond the classes": (rows({"label": 11}), "label is 11, expected 0 to 2"),
    "huge nfe": (rows({"nfe": 10**9}), "nfe is 1000000000, expected 1 to 256"),
    "label as text": (rows({}, {"label": "one"}), "row 1: label is 'one', expected an integer"),
    "label as a truth": (rows({"label": True}), "row 0: label is True, expected an integer"),
    "seed as text": (rows({"seed": "first"}), "row 0: seed is 'first', expected an integer"),
    "seed too large": (rows({"seed": 2**63}), "seed is 9223372036854775808, expected 0 to 2^63 - 1"),
    "nfe broken": (rows({"nfe": 2.7}), "row 0: nfe is 2.7, expected an integer"),
    "nfe null": (rows({"nfe": None}), "row 0: nfe is None, expected an integer"),
    "nfe a list": (rows({"nfe": [2]}), "row 0: nfe is [2], expected an integer"),
    "guidance as text": (rows({"guidance": "much"}), "row 0: guidance is 'much', expected a number"),
    "solver as a number": (rows({"solver": 4}), "row 0: solver is 4, expected text"),
    "missing column": ({"dataframe_records": [{"seed": 1}]}, "nfe"),
    "a list of numbers": ({"inputs": [[1, 2], [3, 4]]}, ""),
    "no known key": ({"rows": []}, "dataframe"),
    "no rows": ({"dataframe_records": []}, ""),
    "no JSON": (b"{", "JSON"),
    "too many rows": (rows(*[{}] * 1025), "1025 rows, expected at most 1024"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD.keys())
def test_the_server_refuses_what_it_cannot_answer_and_goes_on(server: str, content: Any, words: str):
    status, body = ask(server, content)
    assert 400 <= status < 500, body
    assert words in body
    assert "Traceback" not in body
    assert len(served(server, rows({}))) == 1


def test_the_server_refuses_other_kinds_of_content(server: str):
    status, body = ask(server, b"pixels", "image/png")
    assert status == 415
    assert "application/json" in body


def test_the_benchmark_reads_what_wrk_prints_and_trusts_no_load_that_failed():
    said = "    50%   20.52ms\n    99%    1.06s \n  310 requests in 3.00s\nRequests/sec:    103.20\n"
    assert read(said) == {"requests_per_second": 103.2, "p50_ms": 20.5, "p99_ms": 1060.0}
    for failed in (said + "  Non-2xx or 3xx responses: 3\n", said.replace("103.20", "0.00"), "unable to connect"):
        with pytest.raises(InputError):
            read(failed)


@pytest.fixture(scope="module")
def fetched(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published model as whoever fetches it has it: a folder, away from the store and the project."""
    import mlflow

    folder = str(tmp_path_factory.mktemp("fetched"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
        return Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/nfm-digits/1", dst_path=folder))


def required(lines: list[str]) -> list[str]:
    """What requirements stand for, with all that they require in turn, each in the version that is installed here."""
    found, asked = dict[str, str](), [Requirement(line) for line in lines]
    seen = set[str]()
    while asked:
        one = asked.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        here = distribution(one.name)
        found[canonicalize_name(one.name)] = here.version
        for more in map(Requirement, here.requires or []):
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in one.extras or {""}):
                asked.append(more)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


@pytest.fixture(scope="module")
def python(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with what the model declares and nothing else, from the cache that uv has filled .venv from."""
    folder = tmp_path_factory.mktemp("environment")
    pins, environment = folder / "pins.txt", folder / "venv"
    pins.write_text("\n".join(required((fetched / "requirements.txt").read_text().splitlines())))
    uv = str(Path(sys.executable).with_name("uv"))
    made = [uv, "venv", "--quiet", "--python", sys.executable, str(environment)]
    filled = [uv, "pip", "sync", "--quiet", "--offline", "--python", str(environment / "bin" / "python"), str(pins)]
    for command in (made, filled):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            pytest.skip(f"uv's cache does not hold what the model declares: {answer.stderr[:300]}")
    return environment / "bin" / "python"


def test_a_published_model_needs_what_it_declares_and_no_checkout(
    fetched: Path, python: Path, sampler: Sampler, tmp_path: Path
):
    row = {**ROW, "nfe": 3, "solver": "heun", "guidance": 2.0}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [str(python), "-c", ALONE, str(fetched), json.dumps(row)]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout.splitlines()[-1])
    assert not {"prefect", "dvc", "accelerate", "typer"} & set(said["modules"])
    image = sampler.image(Request(**row))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(said["image"]))))
    assert (shown == image.numpy()[0]).all()


def test_a_model_holds_no_pickle_and_names_its_packages_by_version(fetched: Path):
    files = [path for path in fetched.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    wanted = (fetched / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in wanted} >= {"mlflow", "torch", "safetensors", "pillow"}
    assert all("==" in line for line in wanted)
