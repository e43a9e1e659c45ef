"""The commands `trace` and `restore`."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from nfm.errors import InputError
from nfm.registry.history import Run, open_history
from nfm.tracing.chain import COMMIT, FLOW_RUN, HASH, Chain, as_json, chain_of, lines_of
from nfm.tracing.resolve import resolve


def trace(word: str, root: Path, *, json: bool = False) -> str:
    """Returns the whole chain of what a word stands for, and whether its artifacts can be restored.

    Arguments:
        word: See `resolve`.
        root: The project's folder.
        json: Whether a program reads it.

    Raises:
        InputError: It stands for nothing, or MLflow does not answer.
    """
    history = open_history(root)
    found = resolve(word, history, root)
    states = _restorable([run.id for run in found.runs], root)
    chains = [
        replace(chain_of(history, run, root), restorable=states.get(run.id), image=found.image) for run in found.runs
    ]
    if json:
        return as_json(chains)
    if len(chains) > 1:
        return f"{found.what}\n\n{_table(chains)}"
    parts = [f"{found.what}\n", _vertical(chains[0])]
    if made_by := chains[0].run.made_by:
        made = [run for run_id in made_by.values() if (run := history.get(run_id))]
        parts.append("\nthe runs that made its outputs\n")
        parts.append(_table([chain_of(history, run, root) for run in made]))
        if missing := sorted(stage for stage, run_id in made_by.items() if run_id not in {run.id for run in made}):
            parts.append(f"\nnot in this store: {', '.join(missing)}")
    return "\n".join(parts)


def restore(word: str, root: Path) -> int:
    """Brings a run's params and artifacts back in a workspace of their own; returns an exit status.

    DVC does that, which this package never imports: the module flows.restore, in a process of its own, makes the
    worktree as the flow makes those of runs with overrides, over the same cache.
    """
    return subprocess.run(_flows(root, [word]), cwd=root, check=False).returncode


def _restorable(run_ids: Sequence[str], root: Path) -> dict[str, str]:
    """Asks DVC about the artifacts of runs; empty where that cannot be."""
    try:
        command = _flows(root, ["--check", *run_ids])
    except InputError as error:
        return dict.fromkeys(run_ids, f"not known: {error}")
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        said = " ".join(answer.stderr.split())[-300:]
        return dict.fromkeys(run_ids, f"not known: {said.removeprefix('nfm: ')}")
    return json.loads(answer.stdout.splitlines()[-1])


def _flows(root: Path, arguments: Sequence[str]) -> list[str]:
    if not (root / "flows" / "restore.py").is_file() and find_spec("flows") is None:
        raise InputError(f"{root.resolve()} has no flows/restore.py, which asks DVC; run from the project's folder")
    return [sys.executable, "-m", "flows.restore", *arguments]


def _vertical(chain: Chain) -> str:
    lines = lines_of(chain)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def _table(chains: Sequence[Chain]) -> str:
    head = ["stage", "commit", "stage hash", "data hash", "Prefect flow run", "MLflow run", "model", "artifacts"]
    rows = [head, *([_short(chain.run, chain) for chain in chains])]
    rows = [row if any(chain.restorable for chain in chains) else row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(run: Run, chain: Chain) -> list[str]:
    flow = chain.flow
    return [
        run.address or f"flow run {run.name}",
        run.tags.get(COMMIT, "none")[:9],
        run.tags.get(HASH, "")[:12],
        run.tags.get("data.hash", "")[:12],
        flow.tags.get(FLOW_RUN, "") if flow else "none",
        run.id,
        ", ".join(chain.versions),
        chain.restorable or "",
    ]
