"""The project's own graph, end to end on tiny settings: flow, DVC, remote, and what reruns what."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nfm.config import read_mapping, with_overrides
from nfm.registry.client import open_registry
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
    answer = json.loads(run(folder, "dvc", "status", "--json").stdout)
    return set(answer)


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


def test_afterwards_the_flow_finds_all_cached_and_dvc_has_nothing_to_do(project):
    folder, home, _ = project
    assert statuses(folder) == set()
    again = run(folder, "flows.pipeline", PREFECT_HOME=str(home))
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


def test_overrides_run_in_a_workspace_and_execute_only_what_they_change(project):
    folder, home, _ = project
    before = (folder / "params.yaml").read_text()
    answer = run(folder, "flows.pipeline", "--set", "evaluate.samples=24", PREFECT_HOME=str(home))
    assert kinds(executed(answer.stdout + answer.stderr)) == {"evaluate", "evaluate-teacher", "report"}
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


def test_a_stage_that_refuses_its_params_fails_the_flow_with_its_sentence(project):
    folder, home, _ = project
    answer = run(folder, "flows.pipeline", "--set", "student.patch=[3, 8]", check=False, PREFECT_HOME=str(home))
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # mlflow sets it; so it is unset afterwards
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


def test_a_cold_clone_restores_everything_from_s3_and_trains_nothing(project, bucket, tmp_path):
    folder, home, _ = project
    keys = {key: value for key, value in bucket.items() if key.startswith("AWS_")}
    run(folder, "dvc", "remote", "add", "--default", "store", "s3://store/nfm")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", bucket["ADDRESS"])
    run(folder, "dvc", "push", "--run-cache", **keys)
    commit(folder)
    for name, command in {"dvc": ["dvc", "repro", "--pull"], "flow": ["flows.pipeline"]}.items():
        clone = tmp_path / name
        git(tmp_path, "clone", "--quiet", str(folder), str(clone))
        answer = run(clone, *command, PREFECT_HOME=str(home), **keys)
        assert executed(answer.stdout + answer.stderr) <= {"report"}
        assert statuses(clone) == set()
        original = (folder / "artifacts" / "student" / "teacher-0" / "student.safetensors").read_bytes()
        assert (clone / "artifacts" / "student" / "teacher-0" / "student.safetensors").read_bytes() == original
