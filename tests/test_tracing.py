"""Whatever names a run leads to it, and its outputs are those that DVC has under the record which names the run."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nfm.errors import InputError
from nfm.registry.history import Run
from nfm.tracing.chain import Chain, lines_of
from nfm.tracing.locks import Pool, entry_of_run, files_of, in_cache, maker_of, upstream_of
from nfm.tracing.resolve import resolve
from tests.command import nfm

OLD, NEW = "0" * 31 + "1", "0" * 31 + "2"


class Cache:
    """DVC's cache and locks, as far as they are read."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / ".dvc" / "cache"

    def keep(self, content: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(content).hexdigest() + suffix
        path = self.folder / "files" / "md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return md5

    def keep_folder(self, **files: bytes) -> str:
        listed = [{"md5": self.keep(content), "relpath": name} for name, content in files.items()]
        return self.keep(json.dumps(listed).encode(), ".dir")

    def stage(self, name: str, run_id: str, outs: dict[str, str], deps: dict[str, str] | None = None) -> dict[str, Any]:
        outs = {**outs, f"artifacts/runs/{name}.json": self.keep(json.dumps({"run_id": run_id}).encode())}
        listed = {
            key: [{"path": p, "md5": md5} for p, md5 in of.items()]
            for key, of in (("outs", outs), ("deps", deps or {}))
        }
        return {"cmd": f"python -m nfm {name}", **listed}

    def lock(self, **stages: dict[str, Any]) -> None:
        named = {name.replace("__", "@"): content for name, content in stages.items()}
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": named}))

    @property
    def pool(self) -> Pool:
        return Pool(self.root, self.folder)

    @property
    def read(self) -> Any:
        return in_cache(self.folder)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def student_of(cache: Cache, run_id: str, weights: bytes, pairs: str = "") -> dict[str, Any]:
    outs = {"artifacts/student/teacher-0/student.safetensors": cache.keep(weights)}
    return cache.stage("student@teacher-0", run_id, outs, {"artifacts/coupling/teacher-0": pairs} if pairs else {})


def test_a_run_is_found_where_dvc_has_it_in_the_run_cache_or_at_an_older_commit(cache: Cache):
    git = ["git", "-C", str(cache.root)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    cache.lock(student__teacher=student_of(cache, OLD, b"old"))
    subprocess.run([*git, "add", "dvc.lock"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "old"], check=True)
    cache.lock(student__teacher=student_of(cache, NEW, b"new"))
    runs = cache.folder / "runs" / "ab" / "abcd"
    runs.mkdir(parents=True)
    (runs / "cut").write_text("cmd: [")
    (runs / "whole").write_text(yaml.safe_dump(student_of(cache, "3" * 32, b"newer")))
    for run_id, weights in ((OLD, b"old"), (NEW, b"new"), ("3" * 32, b"newer")):
        entry = entry_of_run(cache.pool, "student@teacher-0", run_id, cache.read, cache.root)
        assert entry is not None
        files = files_of(entry, cache.read)
        assert files is not None
        assert cache.read(files["artifacts/student/teacher-0/student.safetensors"]) == weights
    assert entry_of_run(cache.pool, "student@teacher-0", "4" * 32, cache.read, cache.root) is None
    assert entry_of_run(cache.pool, "teacher@0", NEW, cache.read, cache.root) is None


def test_upstream_is_what_made_the_very_bytes_that_were_read(cache: Cache):
    old, new = (cache.keep_folder(card=text) for text in (b"old", b"new"))
    couple = {
        name: cache.stage("couple-teacher@0", run_id, {"artifacts/coupling/teacher-0": pairs})
        for name, run_id, pairs in (("new", NEW, new), ("old", OLD, old))
    }
    cache.lock(couple__new=couple["new"], couple__old=couple["old"], student=student_of(cache, "5" * 32, b"w", old))
    entry = entry_of_run(cache.pool, "student@teacher-0", "5" * 32, cache.read, cache.root)
    assert entry is not None
    found = upstream_of({"student@teacher-0": entry}, cache.pool, cache.read)
    assert set(found) == {"student@teacher-0", "couple-teacher@0"}
    assert found["couple-teacher@0"].outs["artifacts/coupling/teacher-0"] == old


def test_a_file_anywhere_is_known_by_its_bytes_also_out_of_a_folder(cache: Cache, tmp_path: Path):
    pairs = cache.keep_folder(**{"card.json": b"card", "noise.f16": b"noise"})
    cache.lock(couple=cache.stage("couple-teacher@0", NEW, {"artifacts/coupling/teacher-0": pairs}))
    (tmp_path / "copy").write_bytes(b"noise")
    made = maker_of(tmp_path / "copy", cache.pool, cache.read)
    assert made is not None
    assert (made[0].stage, made[1]) == ("couple-teacher@0", "artifacts/coupling/teacher-0/noise.f16")
    (tmp_path / "copy").write_bytes(b"another")
    assert maker_of(tmp_path / "copy", cache.pool, cache.read) is None


def test_a_folder_whose_list_is_gone_has_no_known_files(cache: Cache):
    pairs = cache.keep_folder(card=b"card")
    cache.lock(couple=cache.stage("couple-teacher@0", NEW, {"artifacts/coupling/teacher-0": pairs}))
    (cache.folder / "files" / "md5" / pairs[:2] / pairs[2:]).unlink()
    (entry,) = cache.pool
    assert files_of(entry, cache.read) is None


# What words stand for


RUN = Run(
    id=NEW,
    name="student@teacher-0",
    status="FINISHED",
    start=1,
    tags={
        "stage": "student",
        "dvc.stage": "student@teacher-0",
        "dvc.stage_hash": "e" * 64,
        "git.commit": "c" * 40,
        "data": "digits",
        "data.hash": "d" * 64,
        "mlflow.parentRunId": "9" * 32,
    },
    metrics={},
    inputs=(("digits-train", "f" * 32 + ".dir"),),
)
PARENT = Run("9" * 32, "quick-fox", "FINISHED", 0, {"prefect.flow_run_id": "uuid", "recipe": "digits"}, {})


class Histories:
    """A history of one run and its flow run."""

    uri = "sqlite:///none.db"

    def find(self, word: str) -> Run | None:
        return RUN if word in (RUN.id, RUN.id[:6], RUN.name) else None

    def get(self, run_id: str) -> Run | None:
        return {RUN.id: RUN, PARENT.id: PARENT}.get(run_id)

    def tagged(self, **tags: str) -> list[Run]:
        wanted = {key.replace("__", "."): value for key, value in tags.items()}
        return [run for run in (RUN, PARENT) if wanted.items() <= run.tags.items()]

    def versions(self, run: Run) -> list[str]:
        return ["nfm-digits version 3 (champion)"] if run is RUN else []


def found(word: str, root: Path) -> list[Run]:
    history: Any = Histories()
    return resolve(word, history, root).runs


@pytest.mark.parametrize("word", [NEW, "student@teacher-0", "e" * 64])
def test_a_run_its_stage_and_the_stages_hash_are_the_same_run(word: str, tmp_path: Path):
    assert found(word, tmp_path) == [RUN]


def test_a_picture_leads_to_the_run_that_trained_the_student(tmp_path: Path):
    chunk = PngInfo()
    chunk.add_text(
        "nfm", json.dumps({"run_id": NEW, "model": "nfm-digits", "version": "3", "label": 4, "seed": 1, "nfe": 2})
    )
    Image.new("L", (8, 8)).save(tmp_path / "four.png", pnginfo=chunk)
    history: Any = Histories()
    answer = resolve(str(tmp_path / "four.png"), history, tmp_path)
    assert answer.runs == [RUN]
    assert "model nfm-digits, version 3, label 4, seed 1, nfe 2" in answer.what


def test_a_file_of_a_stage_leads_to_its_run(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nfm.tracing.resolve.cache_folder", lambda root: cache.folder)
    cache.lock(student=student_of(cache, NEW, b"weights"))
    (cache.root / "copy").write_bytes(b"weights")
    assert found("copy", cache.root) == [RUN]
    cache.lock(student=student_of(cache, OLD, b"weights"))
    with pytest.raises(InputError, match=f"made by stage student@teacher-0 in MLflow run {OLD}, which"):
        found("copy", cache.root)
    (cache.root / "copy").write_bytes(b"others")
    with pytest.raises(InputError, match="no output of a stage that DVC knows"):
        found("copy", cache.root)


def test_the_chain_names_every_neighbour(tmp_path: Path):
    chain = Chain(RUN, PARENT, ["nfm-digits version 3 (champion)"], "Subject", "restorable: 2 files in the cache")
    text = "\n".join(f"{name}: {value}" for name, value in lines_of(chain))
    for words in ("c" * 40 + " Subject", "hash " + "e" * 64, "d" * 64, "uuid quick-fox", NEW, PARENT.id, "version 3"):
        assert words in text
    lost = Chain(RUN, None, [], None)
    assert "not in this repository" in dict(lines_of(lost))["git commit"]
    assert dict(lines_of(lost))["Prefect flow run"].startswith("none")


BAD = {
    "unknown": ("nowhere", "'nowhere' is known to no run"),
    "no such alias form": ("models:/nfm-digits", "is no address of a model"),
    "unknown flow run": ("01234567-89ab-cdef-0123-456789abcdef", "is known to no run"),
    "no picture": ("broken.png", "broken.png is no PNG that can be read"),
    "strange metadata": ("strange.png", "which is not nfm's metadata"),
}


@pytest.mark.parametrize(("word", "said"), BAD.values(), ids=BAD.keys())
def test_what_leads_nowhere_is_one_sentence(tmp_path, monkeypatch, capsys, word, said):
    chunk = PngInfo()
    chunk.add_text("nfm", "{")
    Image.new("L", (8, 8)).save(tmp_path / "strange.png", pnginfo=chunk)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert nfm(monkeypatch, "trace", word) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "mlflow.db").exists()
