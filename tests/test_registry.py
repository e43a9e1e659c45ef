"""Published students: what becomes a version, which alias names it, and that its weights are what was published."""

import base64
import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from nfm.artifacts import sha256
from nfm.errors import InputError
from nfm.registry.client import CHALLENGER, CHAMPION, PREVIOUS, Registry, Version, model_name, open_registry
from nfm.tracking import open_tracker
from tests.command import nfm
from tests.conftest import ROOT
from tests.servers import mlflow_server_in
from tests.students import save_random_student

NAME = model_name("digits")
TAGS = {"git.commit": "c0ffee", "coupling": "teacher", "seed": "0"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A project with two published students, the first one by the run that trained it."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copyfile(database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_TRACKER", "mlflow")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        first = save_random_student(folder / "first.safetensors")
        second = save_random_student(folder / "second.safetensors", seed=1)
        with open_tracker("student@teacher-0", folder) as tracker:
            tracker.tags({"git.commit": "c0ffee"})
            tracker.model(first)
        registry = open_registry(folder)
        registry.publish(first, NAME, run_id=tracker.run_id, tags=TAGS, description="The first.")
        registry.publish(second, NAME, run_id="run of another store", tags=TAGS, description="The second.")
    return folder


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the database; the artifacts stay where they were made."""
    shutil.copyfile(base / "mlflow.db", tmp_path / "mlflow.db")
    for name in ("first", "second"):
        shutil.copyfile(base / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def registry(project: Path) -> Registry:
    return open_registry(project)


def numbers(registry: Registry) -> dict[str, int]:
    """Versions by alias."""
    return {alias: version.number for version in registry.versions(NAME) for alias in version.aliases}


def publish(registry: Registry, student: Path, **more: object) -> Version:
    arguments = {"run_id": None, "tags": TAGS, "description": "Again."}
    return registry.publish(student, NAME, **{**arguments, **more})  # pyright: ignore


def test_the_first_version_is_champion_and_no_later_one(registry: Registry):
    assert [version.number for version in registry.versions(NAME)] == [1, 2]
    assert numbers(registry) == {CHAMPION: 1}


def test_a_version_is_the_model_that_the_run_of_its_training_has_logged(registry: Registry):
    first = registry.find(NAME, CHAMPION)
    [output] = registry._client.get_run(first.run_id).outputs.model_outputs  # one model, not one more for publishing
    assert registry._client.get_model_version(NAME, "1").source == f"models:/{output.model_id}"
    assert first.tags.items() >= {**TAGS, "run_id": first.run_id}.items()


def test_a_student_whose_run_is_in_another_store_is_published_all_the_same(registry: Registry):
    second = registry.find(NAME, "2")
    assert second.run_id == second.tags["run_id"] == "run of another store"


def test_a_student_is_published_once(registry: Registry, project: Path):
    again = publish(registry, project / "second.safetensors", tags={"coupling": "another"})
    assert (again.number, again.tags["coupling"]) == (2, "teacher")
    assert len(registry.versions(NAME)) == 2


def publish_at_once(root: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> list[Version]:
    """Publishes a student twice, by threads of which neither has seen the other's version when it makes its own."""
    both, create = threading.Barrier(2, timeout=120), Registry._create

    def create_once_both_have_looked(*arguments: Any) -> Any:
        both.wait()
        return create(*arguments)

    monkeypatch.setattr(Registry, "_create", create_once_both_have_looked)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda _: publish(open_registry(root), student), range(2)))


def test_a_student_that_two_publish_at_once_is_one_version_and_one_model(
    registry: Registry, project: Path, monkeypatch: pytest.MonkeyPatch
):
    third = save_random_student(project / "third.safetensors", seed=2)
    assert [version.number for version in publish_at_once(project, third, monkeypatch)] == [3, 3]
    assert [version.number for version in registry.versions(NAME)] == [1, 2, 3]
    experiment = registry._client.get_experiment_by_name("nfm").experiment_id
    logged = registry._client.search_logged_models([experiment])
    assert sum(model.tags["weights.sha256"] == sha256(third) for model in logged) == 1
    assert registry.weights(registry.find(NAME, "3")).read_bytes() == third.read_bytes()


def test_a_kill_between_the_first_version_and_its_alias_is_made_good(registry: Registry, project: Path):
    registry.move(NAME, {CHAMPION: None})
    publish(registry, project / "second.safetensors")
    assert numbers(registry) == {}  # only the first version is champion by itself
    publish(registry, project / "first.safetensors")
    assert numbers(registry) == {CHAMPION: 1}


def test_aliases_move_together_or_not_at_all(registry: Registry):
    registry.move(NAME, {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: None})
    assert numbers(registry) == {CHAMPION: 2, PREVIOUS: 1}
    with pytest.raises(InputError, match="no version or alias '7'; there are 1, 2"):
        registry.move(NAME, {PREVIOUS: None, CHAMPION: 7})
    assert numbers(registry) == {CHAMPION: 2, PREVIOUS: 1}


def test_a_version_is_found_by_alias_and_by_number_and_else_what_there_is_is_named(registry: Registry):
    assert registry.find(NAME, "1") == registry.find(NAME, CHAMPION)
    with pytest.raises(InputError, match=f"{NAME} has no version or alias 'champoin'; there are 1, 2, champion"):
        registry.find(NAME, "champoin")
    with pytest.raises(InputError, match=r"there is no model 'nfm-mnist' in .*; there are nfm-digits"):
        registry.find("nfm-mnist", CHAMPION)


def test_a_tag_is_added_to_those_of_a_version(registry: Registry):
    version = registry.find(NAME, "2")
    registry.tag(version, {"promotion": "refused"})
    assert registry.find(NAME, "2").tags == {**version.tags, "promotion": "refused"}


def test_weights_come_as_they_were_published_also_once_the_store_has_lost_them(registry: Registry, project: Path):
    version = registry.find(NAME, "2")
    found = registry.weights(version)
    assert sha256(found) == sha256(project / "second.safetensors") == version.tags["weights.sha256"]
    registry.tag(version, {"weights.sha256": "0" * 64})
    with pytest.raises(InputError, match="version 2 have not the SHA-256 of its tag"):
        registry.weights(registry.find(NAME, "2"))
    found.write_bytes(b"damaged")
    assert registry.weights(version).read_bytes() == (project / "second.safetensors").read_bytes()


def test_weights_that_the_store_has_lost_are_a_sentence_that_names_the_version(registry: Registry, tmp_path: Path):
    version = registry.find(NAME, CHAMPION)
    source = registry._client.get_model_version_download_uri(NAME, "1")
    file = Path(source.removeprefix("file://")) / "artifacts" / "student.safetensors"
    shutil.move(file, tmp_path / "kept")
    try:
        with pytest.raises(
            InputError, match=f"the weights of {NAME} version 1 cannot be fetched from MLflow at sqlite"
        ):
            registry.weights(version)
    finally:
        shutil.move(tmp_path / "kept", file)
    assert registry.weights(version).is_file()


def test_what_is_no_student_of_images_is_not_published(registry: Registry, project: Path):
    latents = save_random_student(project / "latents.safetensors", shape=[4, 8, 8])
    with pytest.raises(InputError, match="makes latents"):
        publish(registry, latents)
    (project / "text.safetensors").write_text("no student")
    with pytest.raises(InputError, match="is corrupt"):
        publish(registry, project / "text.safetensors")
    assert len(registry.versions(NAME)) == 2


def test_where_nothing_has_been_published_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    registry = open_registry(tmp_path)
    assert registry.versions(NAME) == []
    with pytest.raises(InputError, match=r"there is no model 'nfm-digits' in sqlite:.*nothing has been published"):
        registry.find(NAME, CHAMPION)
    assert not list(tmp_path.iterdir())


def test_a_registry_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = open_registry(tmp_path)
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        registry.find(NAME, CHAMPION)


@pytest.mark.parametrize("address", ["htp://127.0.0.1", "sqlite:///params.yaml"], ids=["no scheme", "no database"])
def test_an_address_that_mlflow_cannot_use_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for command in (["promote", "2"], ["rollback"], ["trace", "student@teacher-0"], ["compare", "experiment:nfm"]):
        assert nfm(monkeypatch, *command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"MLflow at {address} does not answer" in line


def test_a_server_keeps_versions_aliases_and_weights_as_a_local_database_does(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    third = save_random_student(project / "third.safetensors", seed=2)
    with mlflow_server_in(project) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("NFM_TRACKER", "mlflow")
        with open_tracker("student@teacher-2", project) as tracker:
            tracker.model(third)
        registry = open_registry(project)
        made = registry.publish(third, "nfm-mnist", run_id=tracker.run_id, tags=TAGS, description="By a server.")
        assert (made.number, made.aliases, made.run_id) == (1, (CHAMPION,), tracker.run_id)
        at_once = publish_at_once(project, third, monkeypatch)
        assert [version.number for version in at_once] == [3, 3]  # of another name, after those that are there
        assert [version.number for version in registry.versions(NAME)] == [1, 2, 3]
        registry.move(NAME, {CHAMPION: 3, PREVIOUS: 1})
        assert numbers(registry) == {CHAMPION: 3, PREVIOUS: 1}
        assert registry.weights(registry.find(NAME, CHAMPION)).read_bytes() == third.read_bytes()
        rows = [{"seed": 1, "nfe": 1, "solver": "euler", "guidance": 1.0}]
        answer = mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}").predict(pd.DataFrame(rows))
        said = json.loads(Image.open(io.BytesIO(base64.b64decode(answer["image"][0]))).info["nfm"])
        assert (said["model"], said["version"]) == (NAME, "3")
