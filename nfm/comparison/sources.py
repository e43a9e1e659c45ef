"""What a word on the command line stands for: a summary's file, a git revision, an MLflow run or experiment."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nfm.artifacts import read_json
from nfm.comparison.subject import Figures, Subject, from_summary
from nfm.errors import InputError
from nfm.registry.history import History, Run, open_history

SUMMARY = "results/summary.json"
PREFIXES = ("git", "run", "experiment")


def subjects_of(words: Sequence[str], root: Path) -> list[Subject]:
    """Returns what is to be compared.

    A word is a file, else an MLflow run's id (32 digits), else a git revision, else the name of a run or of an
    experiment, whose newest flow run is taken; "git:", "run:" and "experiment:" before it say which. Without words the
    summary of the folder, and that of HEAD where it is another.

    Raises:
        InputError: A word stands for nothing.
    """
    if words:
        return [_subject(word, root) for word in words]
    here = from_summary(SUMMARY, read_json(root / SUMMARY))
    committed = _show(root, "HEAD")
    if committed is None or json.loads(committed) == read_json(root / SUMMARY):
        return [here]
    return [from_summary("HEAD", json.loads(committed)), here]


def _subject(word: str, root: Path) -> Subject:
    prefix, _, rest = word.partition(":")
    kind, word = (prefix, rest) if prefix in PREFIXES and rest else ("", word)
    if not kind and (root / word).is_file():
        return from_summary(word, read_json(root / word))
    if not kind and not re.fullmatch("[0-9a-f]{32}", word) and _is_revision(root, word):
        kind = "git"
    if kind == "git":
        return from_summary(word, _committed(root, word))
    history = open_history(root)
    run = history.newest_flow_run(word) if kind == "experiment" else history.find(word)
    if run is None and not kind:
        run = history.newest_flow_run(word)
    if run is None:
        raise InputError(
            f"{word!r} is no {kind or 'file, git revision, MLflow run or experiment'} known at {history.uri}; "
            f"runs are found by id or name, revisions by what `git rev-parse` takes, files by their path"
        )
    return _from_run(history, run)


def _from_run(history: History, run: Run) -> Subject:
    """Reads a stage's evaluation, or the summary that a flow run or the stage `report` has left."""
    if run.stage == "evaluate":
        return _from_evaluation(history, run)
    report = run if run.stage == "report" else history.made_by(run, "report")
    if report is None:
        raise InputError(
            f"run {run.id} ({run.name}) holds no figures to compare: it is neither an evaluation of a student, nor a "
            "report, nor a flow run that has come to its report"
        )
    short = f"{run.name} {run.id[:8]}"
    return from_summary(short, json.loads(history.text(report, "summary.json")))


def _from_evaluation(history: History, run: Run) -> Subject:
    fd = {nfe: [value] for nfe, value in sorted(history.curve(run, "fd").items())}
    yardstick = history.yardstick(run)
    if not fd or not yardstick:
        raise InputError(
            f"run {run.id} ({run.name}) has no fd, or does not say what it was measured with: it failed, or was made "
            "before runs did; compare its flow run or run the stage again"
        )
    curvature = [run.metrics["curvature"]] if "curvature" in run.metrics else []
    coupling = run.tags.get("coupling", "student")
    figures = {coupling: Figures(fd, curvature)}
    return Subject(f"{run.name} {run.id[:8]}", str(yardstick.get("fd", "fd")), yardstick, figures)


def _is_revision(root: Path, word: str) -> bool:
    return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}").returncode == 0


def _committed(root: Path, revision: str) -> object:
    if not _is_revision(root, revision):
        raise InputError(f"git:{revision} is no revision of {root.resolve()}; see `git log --oneline`")
    text = _show(root, revision)
    if text is None:
        raise InputError(f"revision {revision} has no {SUMMARY}; one that has: `git log --oneline -- {SUMMARY}`")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{SUMMARY} of revision {revision} is not JSON ({error})") from error


def _show(root: Path, revision: str) -> str | None:
    answer = _git(root, "show", "--end-of-options", f"{revision}:./{SUMMARY}")
    return answer.stdout if answer.returncode == 0 else None


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
