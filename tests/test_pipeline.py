"""The project's own graph, end to end on tiny settings: flow, DVC, remote, and what reruns what."""

import csv
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import chdir, closing
from io import StringIO
from pathlib import Path

import boto3
import pytest
import yaml
from dvc.repo import Repo

from nfm.artifacts import sha256
from nfm.config import read_mapping, with_overrides
from nfm.registry.client import open_registry
from nfm.registry.history import History, Run
from tests.browser import chromium_page, needs_chromium
from tests.servers import free_port, wait_for_answer
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]


# Secrets that the first run holds, none of which it needs.
CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary-store",
    "AWS_SESSION_TOKEN": "canary-session",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow",
    "PREFECT_API_AUTH_STRING": "canary:prefect",
}


def environment(**more):
    """The caller's environment without its settings of ours, and with this interpreter's programs first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "NFM_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, "NFM_TRACKER": "jsonl", **more}


def run(folder, *command, check=True, **more):
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def git(folder, *command):
    subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def commit(folder):
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message", "state")


def statuses(folder):
    """The stages that DVC would run, by name."""
    with chdir(folder), Repo() as repo:  # DVC's names are relative to where one is
        return set(repo.status())


def kinds(names):
    return {name.partition("@")[0] for name in names}


def executed(log):
    """The stages that a flow or `dvc repro` has executed."""
    return {line.split("'")[1] for line in log.splitlines() if "Running stage '" in line}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A checkout of this project with tiny params, whose flow has run once; its home is kept for Prefect."""
    base = tmp_path_factory.mktemp("pipeline")
    folder, home = base / "project", base / "prefect"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith(("results/", "tests/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = with_overrides(read_mapping(ROOT / "params.yaml"), TINY)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git(folder, "init", "--quiet")
    commit(folder)
    first = run(folder, "flows.pipeline", PREFECT_HOME=str(home), NFM_TRACKER="mlflow", **CANARIES)
    commit(folder)
    return folder, home, first.stdout + first.stderr


def test_the_first_flow_run_executes_every_stage_of_the_graph(project):
    folder, _, log = project
    listed = run(folder, "dvc", "stage", "list", "--name-only").stdout.split()
    assert executed(log) == set(listed)
    assert len(listed) == 12


def test_a_run_leaves_no_secret_in_its_files_logs_histories_and_parameters(project):
    folder, home, log = project
    files = [path for place in (folder, home) for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    read = {str(path): path.read_bytes() for path in files}
    databases = {Path(name).name: content for name, content in read.items() if name.endswith(".db")}
    assert b"student@teacher-0" in databases["mlflow.db"]
    assert b"student@teacher-0" in databases["prefect.db"] + read.get(str(home / "prefect.db-wal"), b"")
    for secret in CANARIES.values():
        assert secret not in log
        assert [name for name, content in read.items() if secret.encode() in content] == []


def test_the_summary_has_the_documented_shape(project):
    summary = json.loads((project[0] / "results" / "summary.json").read_text())
    couplings = {"semidiscrete-ot", "teacher"}
    assert summary["dataset"] == "digits"
    assert summary["samples"] == 20
    assert summary["metric"] == summary["names"]["fd"] == "fd_digits_20"
    for name in (*summary["names"], "accuracy"):
        assert set(summary[name]) == couplings
        assert all(set(by_nfe) == {"1", "5"} for by_nfe in summary[name].values())
        assert all(len(v) == 1 for by_nfe in summary[name].values() for v in by_nfe.values())
    assert set(summary["curvature"]) == couplings
    assert set(summary["teacher"]) == {"bits_per_dim", "fd_raw", "fd_denoised", "seconds_per_image"}
    of_card = {"c2st", "c2st_error", "c2st_by_class", "eigenvalues", "mean_drift", "variance_drift"}
    assert set(summary["coupling"]) == of_card | {"round_trip", "sigma", "gate"}
    assert [verdict["passed"] for verdict in summary["coupling"]["gate"]] == [False]  # and allowed
    assert summary["coupling"]["round_trip"] < 1e-3
    assert all(seconds > 0 for seconds in summary["seconds"].values())
    # At NFE 5 both solvers measure: the table has Euler's.
    measured = json.loads((project[0] / "metrics" / "evaluate" / "teacher-0.json").read_text())
    assert summary["fd"]["teacher"]["5"] == [measured["fd_digits_20"]["euler-5"]]
    assert summary["fd_train"]["teacher"]["5"] == [measured["fd_digits_20_train"]["euler-5"]]
    assert summary["recall"]["teacher"]["5"] == [measured["recall_digits_20"]["euler-5"]]
    assert summary["fd_heun_5"]["teacher"] == [measured["fd_digits_20"]["heun-5"]]


# What is read of a run afterwards


def history_of(folder) -> History:
    return History(f"sqlite:///{folder}/mlflow.db")


def newest(folder, name) -> Run:
    run = history_of(folder).find(name)
    assert run is not None
    return run


def test_compare_shows_what_dvc_shows_wherever_the_figures_are_read(project):
    folder = project[0]
    words = ["results/summary.json", "HEAD", "experiment:nfm", "evaluate@teacher-0"]
    rows = list(csv.DictReader(StringIO(run(folder, "nfm", "compare", *words, "--format", "csv").stdout)))
    by_run = {}
    for row in rows:
        by_run.setdefault(row["run"], {})[row["coupling"], row["nfe"]] = float(row["fd"])
    first, *others = by_run.values()
    assert len(others) == 3
    assert len(first) == 4
    for other in others:
        assert other == {key: first[key] for key in other}
    shown = json.loads(run(folder, "dvc", "metrics", "show", "--json", "results/summary.json").stdout)
    means = shown[""]["data"]["results/summary.json"]["data"]["mean"]["fd"]
    assert first == {(name, nfe): value for name, by_nfe in means.items() for nfe, value in by_nfe.items()}
    table = csv.DictReader((folder / "results" / "fd.csv").read_text().splitlines())  # of `dvc plots`
    assert first == {(name, row["nfe"]): float(row[name]) for row in table for name in means}


def test_a_stages_run_has_its_inputs_by_dvcs_hash_and_its_neighbours_ids(project):
    folder = project[0]
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    outs = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    student = newest(folder, "student@teacher-0")
    assert dict(student.inputs) == {
        "digits-train": outs["artifacts/data/train"],
        "coupling-teacher-0": outs["artifacts/coupling/teacher-0"],
    }
    assert dict(newest(folder, "evaluate@teacher-0").inputs) == {"digits-test": outs["artifacts/data/test"]}
    parent = history_of(folder).get(student.parent or "")
    assert parent is not None
    assert parent.made_by["student@teacher-0"] == student.id
    assert parent.tags["git.commit"] == student.tags["git.commit"]
    assert parent.id in prefects(project, parent.tags["prefect.flow_run_id"])


def prefects(project, flow_run_id):
    """The artifact of a flow run in Prefect's database that names MLflow's run."""
    with closing(sqlite3.connect(f"file:{project[1]}/prefect.db?mode=ro", uri=True)) as database:
        query = "SELECT data FROM artifact WHERE key = 'mlflow' AND replace(flow_run_id, '-', '') = ?"
        [(data,)] = database.execute(query, (flow_run_id.replace("-", ""),)).fetchall()
    return data


def test_trace_prints_the_chain_of_a_stage_a_file_and_a_flow_run(project, tmp_path):
    folder = project[0]
    student = newest(folder, "student@teacher-0")
    copy = tmp_path / "copy"
    shutil.copy(folder / "artifacts" / "student" / "teacher-0" / "student.safetensors", copy)
    [chain] = json.loads(run(folder, "nfm", "trace", str(copy), "--json").stdout)
    assert chain["mlflow_run"] == student.id
    assert chain["dvc_stage"] == "student@teacher-0"
    assert chain["git_commit"] == student.tags["git.commit"]
    assert chain["data_hash"] == sha256(folder / "artifacts" / "data" / "train" / "manifest.json")
    assert chain["artifacts"] == "restorable: 3 files in the cache"
    said = run(folder, "nfm", "trace", chain["prefect_flow_run"]).stdout
    for words in (chain["mlflow_parent_run"], student.id, newest(folder, "report").id, "restorable: "):
        assert words in said


def test_the_report_of_a_flow_run_has_the_last_champion_and_the_chain_and_that_of_dvc_has_not(project):
    folder = project[0]
    page, plain = ((folder / name).read_text() for name in ("report.html", "report/index.html"))
    student = newest(folder, "student@teacher-0")
    parent = history_of(folder).get(student.parent or "")
    assert parent is not None
    for words in (parent.id, parent.tags["prefect.flow_run_id"], parent.tags["git.commit"], "is its first champion"):
        assert words in page
        assert words not in plain
    assert student.id in plain
    assert student.tags["dvc.stage_hash"] in plain
    assert history_of(folder).text(parent, "report.html") == page
    assert "/report.html" in project[2]


def bytes_of(folder, *left_out):
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return {name: path.read_bytes() for path, name in names.items() if not name.startswith(left_out)}


OF_DVC_AND_GIT = (".git/", ".dvc/tmp/", ".workspaces/")


def test_restore_brings_a_flow_run_back_to_the_bit_and_touches_nothing_else(project):
    folder = project[0]
    parent = history_of(folder).get(newest(folder, "report").parent or "")
    assert parent is not None
    restored = folder / ".workspaces" / f"restored-{parent.id[:12]}"
    before, params = bytes_of(folder, *OF_DVC_AND_GIT), folder / "params.yaml"
    kept = params.read_bytes()
    try:
        params.write_text(yaml.safe_dump(with_overrides(yaml.safe_load(kept), {"student.width": 64}), sort_keys=False))
        assert f"{restored}: " in run(folder, "nfm", "restore", parent.id).stdout
        params.write_bytes(kept)
        assert bytes_of(folder, *OF_DVC_AND_GIT) == before
        made = ("artifacts/", "metrics/", "report/", "results/fd.csv", "results/seconds.csv", "results/summary.json")
        wanted = {name: content for name, content in before.items() if name.startswith((*made, "params.yaml"))}
        found = bytes_of(restored)
        assert {name: found.get(name) for name in wanted} == wanted
        assert statuses(restored) == set()
    finally:
        params.write_bytes(kept)
        git(folder, "worktree", "remove", "--force", str(restored))


def test_what_is_gone_is_one_sentence_and_leaves_no_workspace(project, tmp_path):
    folder = project[0]
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["student@teacher-0"]
    md5 = next(out["md5"] for out in lock["outs"] if out["path"].endswith(".safetensors"))
    kept = folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    shutil.move(kept, tmp_path / "kept")
    try:
        answer = run(folder, "nfm", "restore", "student@teacher-0", check=False)
    finally:
        shutil.move(tmp_path / "kept", kept)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert "are gone: artifacts/student/teacher-0/student.safetensors of" in line
    assert not list(folder.glob(".workspaces/restored-*"))


@needs_chromium
def test_two_evaluations_are_compared_in_mlflows_interface(project, tmp_path):
    folder, port = project[0], free_port()
    ids = [newest(folder, f"evaluate@{coupling}-0").id for coupling in ("semidiscrete-ot", "teacher")]
    parent = history_of(folder).get(newest(folder, "report").parent or "")
    assert parent is not None
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--default-artifact-root", str(folder / "mlartifacts")]
    settings = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/health", server)
        with chromium_page(tmp_path) as page:
            seen_in_the_interface(page, f"http://127.0.0.1:{port}", parent.name, ids, tmp_path)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def seen_in_the_interface(page, address, flow_run, ids, folder):
    """Opens the experiment, then the comparison of two runs, then their curves."""
    chosen = f"runs={json.dumps(ids)}&experiments=[%221%22]".replace(" ", "").replace('"', "%22")
    page.open(f"{address}/#/experiments/1/runs")
    page.wait_for(f"document.body.innerText.includes('{flow_run}')")
    page.photograph(folder / "experiment.png")
    page.open(f"{address}/#/compare-runs?{chosen}")
    page.wait_for("document.body.innerText.includes('noise_std')")
    for words in ("Parallel Coordinates", "coupling", "draws", "at_nfe/fd_05", "evaluate@teacher-0"):
        assert words in page.text
    page.photograph(folder / "compare.png")
    page.open(f"{address}/#/metric?{chosen}&metric=%22fd%22&plot_metric_keys=[%22fd%22]&x_axis=step")
    page.wait_for("document.querySelectorAll('.scatterlayer .trace').length")
    drawn = page.ask(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data.map(c => [c.name, [...c.x]]))"
    )
    for coupling in ("semidiscrete-ot", "teacher"):
        assert [f"evaluate@{coupling}-0", [1, 5]] in drawn
    page.photograph(folder / "curves.png")


def test_afterwards_the_flow_finds_all_cached_and_dvc_has_nothing_to_do(project, prefect_server):
    folder = project[0]
    assert statuses(folder) == set()
    again = run(folder, "flows.pipeline", PREFECT_API_URL=prefect_server)
    log = again.stdout + again.stderr
    assert executed(log) == set()
    assert log.count("Cached") >= 12
    repro = run(folder, "dvc", "repro").stdout
    assert executed(repro) == set()


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"evaluate.samples": 21}, {"evaluate", "evaluate-teacher", "report"}),
        ({"student.width": 64}, {"student"}),
        ({"teacher.blocks": 3}, {"teacher"}),
        ({"coupling.teacher.draws": 3}, {"couple-teacher"}),
        ({"coupling.semidiscrete-ot.across_classes": True}, {"couple"}),
        ({"coupling.minibatch-ot.across_classes": True}, set()),  # which is none of the couplings here
        ({"features.width": 16}, {"features"}),
        (
            {"evaluate.inception": {"source": "x", "sha256": "0" * 64}},
            {"reference", "evaluate", "evaluate-teacher", "report"},
        ),
        ({"data.seed": 1}, {"prepare"}),
        ({"run.log_every": 1, "run.checkpoint_every": 1, "run.sample_batch": 7}, set()),
        ({"promote.alpha": 0.01, "promote.guards.card": False}, set()),
        ({"cost.cpu_hour": 1.0}, set()),
        ({"infra.teacher": "gpu-pool", "infra.student": "cpu-pool"}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_changed_param_makes_stale_what_reads_it_and_no_more(project, changes, stale):
    folder = project[0]
    path = folder / "params.yaml"
    before = path.read_text()
    try:
        path.write_text(yaml.safe_dump(with_overrides(yaml.safe_load(before), changes), sort_keys=False))
        assert kinds(statuses(folder)) == stale
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("flows/pipeline.py", set()),
        ("nfm/config/params.py", set()),
        ("nfm/tracking.py", set()),
        ("nfm/teacher/tarflow.py", {"teacher", "couple-teacher", "evaluate-teacher"}),
        ("nfm/student/loss.py", {"student", "evaluate"}),
        ("nfm/metrics/fidelity.py", {"reference", "evaluate", "evaluate-teacher"}),
        ("nfm/figures/curves.py", {"report"}),
    ],
)
def test_a_comment_in_the_code_makes_stale_the_stages_that_list_it(project, file, stale):
    path = project[0] / file
    before = path.read_text()
    try:
        path.write_text(before + "\n# a comment\n")
        assert kinds(statuses(project[0])) == stale
    finally:
        path.write_text(before)


def test_overrides_run_in_a_workspace_and_execute_only_what_they_change(project, prefect_server):
    folder = project[0]
    before = (folder / "params.yaml").read_text()
    overrides = ["--set", "evaluate.samples=24", "--set", "couplings=[teacher]"]
    answer = run(folder, "flows.pipeline", *overrides, PREFECT_API_URL=prefect_server)
    assert executed(answer.stdout + answer.stderr) == {"evaluate@teacher-0", "evaluate-teacher@0", "report"}
    (workspace,) = (path for path in (folder / ".workspaces").iterdir() if path.is_dir())
    assert json.loads((workspace / "results" / "summary.json").read_text())["samples"] == 24
    assert json.loads((folder / "results" / "summary.json").read_text())["samples"] == 20
    assert (folder / "params.yaml").read_text() == before


def test_a_bad_override_is_one_sentence_before_anything_runs(project):
    folder, home, _ = project
    answer = run(folder, "flows.pipeline", "--set", "student.widht=3", check=False, PREFECT_HOME=str(home))
    assert answer.returncode == 2
    assert answer.stderr.strip().count("\n") == 0
    assert "did you mean 'width'" in answer.stderr


def test_a_stage_that_refuses_its_params_fails_the_flow_with_its_sentence(project, prefect_server):
    wrong = ["--set", "student.patch=[3, 8]", "--stages", "student@teacher-0"]
    answer = run(project[0], "flows.pipeline", *wrong, check=False, PREFECT_API_URL=prefect_server)
    assert answer.returncode == 1
    assert "student.patch is [3, 8]" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_executed_stage_is_an_mlflow_run_below_one_parent(project):
    import mlflow

    folder = project[0]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("nfm")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["dvc.stage"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1
    assert len(children) == 12
    assert all(run.info.status == "FINISHED" for run in runs)
    student = children["student@teacher-0"]
    assert student.data.tags["coupling"] == "teacher"
    assert student.data.params["student.train.steps"] == "2"
    kept = {artifact.path for artifact in client.list_artifacts(children["couple-teacher@0"].info.run_id)}
    assert {"card.json", "images"} <= kept
    record = json.loads((folder / "artifacts" / "runs" / "student@teacher-0.json").read_text())
    assert record["run_id"] == student.info.run_id
    # The curve: FD with the NFE as its step, by its short and its full name.
    curves = [
        client.get_metric_history(children["evaluate@teacher-0"].info.run_id, name) for name in ("fd", "fd_digits_20")
    ]
    short, full = ([(point.step, point.value) for point in curve] for curve in curves)
    assert [step for step, _ in short] == [1, 5]
    assert short == full


def test_the_first_flow_run_ends_with_the_teachers_student_as_champion(project, monkeypatch):
    folder, _, log = project
    [version] = open_registry(folder).versions("nfm-digits")
    record = json.loads((folder / "artifacts" / "runs" / "student@teacher-0.json").read_text())
    assert (version.number, version.aliases, version.run_id) == (1, ("champion",), record["run_id"])
    first = subprocess.run(
        ["git", "rev-list", "--max-parents=0", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    known = {"git.commit": first.stdout.strip(), "dvc.stage_hash": record["key"], "coupling": "teacher", "seed": "0"}
    assert version.tags.items() >= known.items()
    assert version.tags["prefect.flow_run"]
    assert "student teacher-0 is nfm-digits version 1, champion" in log


@pytest.fixture(scope="module")
def stored(project, bucket):
    """The project's outputs in an S3 store; the keys to it."""
    folder = project[0]
    keys = {key: value for key, value in bucket.items() if key.startswith("AWS_")}
    run(folder, "dvc", "remote", "add", "--default", "store", "s3://store/nfm")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", bucket["ADDRESS"])
    run(folder, "dvc", "push", "--run-cache", **keys)
    commit(folder)
    return keys


def test_a_cold_clone_restores_everything_from_s3_and_trains_nothing(project, stored, prefect_server, tmp_path):
    folder = project[0]
    for name, command in {"dvc": ["dvc", "repro", "--pull"], "flow": ["flows.pipeline"]}.items():
        clone = tmp_path / name
        git(tmp_path, "clone", "--quiet", str(folder), str(clone))
        answer = run(clone, *command, PREFECT_API_URL=prefect_server, **stored)
        assert executed(answer.stdout + answer.stderr) <= {"report"}
        assert statuses(clone) == set()
        original = (folder / "artifacts" / "student" / "teacher-0" / "student.safetensors").read_bytes()
        assert (clone / "artifacts" / "student" / "teacher-0" / "student.safetensors").read_bytes() == original


def test_a_cold_clone_traces_and_restores_a_run_until_the_remote_lacks_a_file(project, stored, bucket, tmp_path):
    folder, clone = project[0], tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(folder), str(clone))
    shared = {**stored, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    student = newest(folder, "student@teacher-0")
    [chain] = json.loads(run(clone, "nfm", "trace", student.id, "--json", **shared).stdout)
    assert chain["artifacts"].endswith("in the remote")
    run(clone, "nfm", "restore", student.id, **shared)
    name = "artifacts/student/teacher-0/student.safetensors"
    restored = clone / ".workspaces" / f"restored-{student.id[:12]}"
    assert (restored / name).read_bytes() == (folder / name).read_bytes()
    assert not (clone / "artifacts").exists()
    md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
    shutil.rmtree(clone / ".dvc" / "cache")
    shutil.rmtree(restored)
    place = {"Bucket": "store", "Key": f"nfm/files/md5/{md5[:2]}/{md5[2:]}"}
    client = boto3.client(
        "s3",
        endpoint_url=bucket["ADDRESS"],
        aws_access_key_id=stored["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=stored["AWS_SECRET_ACCESS_KEY"],
        region_name=stored["AWS_DEFAULT_REGION"],
    )
    client.delete_object(**place)
    answer = run(clone, "nfm", "restore", student.id, check=False, **shared)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert f"are gone: {name} of" in line
    assert not list(clone.glob(".workspaces/restored-*"))
    client.put_object(**place, Body=(folder / name).read_bytes())
