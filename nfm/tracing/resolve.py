"""Which runs a word stands for: a commit, a stage or its hash, a run of Prefect's or MLflow's, a model, a file."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfm.errors import InputError
from nfm.registry.history import History, Run
from nfm.tracing.locks import Pool, in_cache, maker_of, record_in

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MODEL = re.compile(r"models:/([^/@]+)(?:@|/)([^/@]+)")
KEY = "nfm"  # of the text chunk in a published PNG
SHOWN = ("model", "version", "weights.sha256", "label", "seed", "nfe", "solver", "guidance")  # what is said of an image


@dataclass(frozen=True)
class Found:
    """What a word stands for.

    Attributes:
        what: In words.
        runs: Newest first, or in the order of the stages.
        image: An image's metadata.
    """

    what: str
    runs: list[Run]
    image: Mapping[str, Any] | None = None


def resolve(word: str, history: History, root: Path) -> Found:
    """Returns the runs that a word stands for.

    Raises:
        InputError: It stands for none.
    """
    if (file := Path(word)).is_file() or (file := root / word).is_file():
        return _of_file(file, history, root)
    if word.startswith("models:"):
        return _of_model(word, history, root)
    if UUID.fullmatch(word):
        runs = history.tagged(prefect__flow_run_id=word)
        return Found(f"Prefect flow run {word}", _required(runs[:1], word, history))
    if re.fullmatch("[0-9a-f]{64}", word):
        runs = history.tagged(dvc__stage_hash=word)
        return Found(f"DVC stage hash {word}", _required(runs[:1], word, history))
    if run := history.find(word):
        # A run's name is a stage's name too, of its newest run.
        return Found(f"MLflow run {run.id}" if run.id.startswith(word) else f"newest run of {word}", [run])
    if commit := _commit(word, root):
        newest: dict[str, Run] = {}
        for run in history.tagged(git__commit=commit):
            if run.status == "FINISHED":
                newest.setdefault(run.address or run.id, run)
        runs = sorted(newest.values(), key=lambda run: run.start)
        return Found(f"git commit {commit}, newest finished run of each stage", _required(runs, word, history))
    return Found(word, _required([], word, history))


def _of_file(file: Path, history: History, root: Path) -> Found:
    from PIL import Image, UnidentifiedImageError

    if file.suffix.lower() == ".png":
        try:
            with Image.open(file) as image:
                said = getattr(image, "text", {}).get(KEY)
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{file} is no PNG that can be read: {' '.join(str(error).split())}") from error
        if said is not None:
            return _of_image(file, said, history, root)
    cache = cache_folder(root)
    read = in_cache(cache)
    made = maker_of(file, Pool(root, cache), read)
    if made is None:
        raise InputError(
            f"{file} is no output of a stage that DVC knows: no dvc.lock of this project and no entry of its run-cache "
            "has a file with these bytes, and it has no metadata of nfm's"
        )
    entry, path = made
    run_id = record_in(entry, read, root).get("run_id")
    run = history.get(run_id) if run_id else None
    if run is None:
        raise InputError(
            f"{file} is {path}, made by stage {entry.stage} in MLflow run {run_id or 'unknown'}, which {history.uri} "
            "does not hold; set MLFLOW_TRACKING_URI to where it ran"
        )
    return Found(f"{file} is {path}", [run])


def _of_image(file: Path, said: str, history: History, root: Path) -> Found:
    try:
        image = dict(json.loads(said))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} has a text chunk {KEY!r} which is not nfm's metadata ({error})") from error
    shown = {key: image[key] for key in SHOWN if image.get(key) is not None}
    what = f"{file} shows " + ", ".join(f"{key} {value}" for key, value in shown.items())
    run = history.get(str(image["run_id"])) if image.get("run_id") else None
    if run is not None:
        return Found(what, [run], shown)
    if image.get("model") and image.get("version"):
        return Found(what, _of_model(f"models:/{image['model']}/{image['version']}", history, root).runs, shown)
    raise InputError(
        f"{file} was made by the student of MLflow run {image.get('run_id', 'unknown')}, which {history.uri} does not "
        "hold; set MLFLOW_TRACKING_URI to where it ran"
    )


def _of_model(word: str, history: History, root: Path) -> Found:
    from nfm.registry.client import open_registry

    parts = MODEL.fullmatch(word)
    if parts is None:
        raise InputError(f"{word!r} is no address of a model; expected models:/NAME@ALIAS or models:/NAME/NUMBER")
    version = open_registry(root).find(parts[1], parts[2])
    run = history.get(version.run_id) if version.run_id else None
    if run is None:
        raise InputError(
            f"{word} is version {version.number} of {version.name}, trained in MLflow run "
            f"{version.run_id or 'unknown'}, which {history.uri} does not hold; set MLFLOW_TRACKING_URI to where it ran"
        )
    return Found(f"{word} is version {version.number} of {version.name}", [run])


def cache_folder(root: Path) -> Path:
    """Returns where DVC keeps its cache.

    Raises:
        InputError: The folder is no DVC project, or DVC is not installed.
    """
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        said = " ".join(answer.stderr.split())[-200:]
        raise InputError(f"{root.resolve()} has no DVC cache to look in ({said}); run from the project's folder")
    return root / answer.stdout.strip()


def _commit(word: str, root: Path) -> str | None:
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _required(runs: list[Run], word: str, history: History) -> list[Run]:
    if not runs:
        raise InputError(
            f"{word!r} is known to no run at {history.uri}; expected a git commit, a stage such as student@teacher-0 "
            "or its hash, an id of a Prefect or MLflow run, models:/NAME@ALIAS, or a file"
        )
    return runs
