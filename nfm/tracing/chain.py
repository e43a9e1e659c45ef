"""The identity chain of one run: git commit, DVC's hashes, Prefect's flow run, MLflow's run, published versions."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfm.registry.history import History, Run

COMMIT, HASH, FLOW_RUN = "git.commit", "dvc.stage_hash", "prefect.flow_run_id"


@dataclass(frozen=True)
class Chain:
    """A run with what it hangs on.

    Attributes:
        run: The run, of a stage or of a flow run.
        parent: The flow run's run, if it is another and this store holds it.
        versions: Published models whose student the run has trained, such as "nfm-digits version 3 (champion)".
        subject: First line of the commit's message; None where the commit is not in this repository.
        restorable: Whether its artifacts can be brought back, in words; None where nobody has looked.
        image: What the metadata of an image say of it.
    """

    run: Run
    parent: Run | None
    versions: Sequence[str]
    subject: str | None
    restorable: str | None = None
    image: Mapping[str, Any] | None = None

    @property
    def flow(self) -> Run | None:
        """The flow run's run."""
        return self.run if FLOW_RUN in self.run.tags else self.parent


def chain_of(history: History, run: Run, root: Path) -> Chain:
    """Returns the chain of a run, all but whether it can be restored."""
    parent = history.get(run.parent) if run.parent else None
    return Chain(run, parent, history.versions(run), subject_of(root, run.tags.get(COMMIT, "")))


def subject_of(root: Path, commit: str) -> str | None:
    """Returns the first line of a commit's message; None where there is no such commit."""
    if not commit or commit == "none":
        return None
    command = ["git", "-C", str(root), "show", "--no-patch", "--format=%s", "--end-of-options", commit]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def lines_of(chain: Chain) -> list[tuple[str, str]]:
    """Returns the chain as pairs of a name and a value, from the commit to the model."""
    run, tags = chain.run, chain.run.tags
    lines = [("git commit", _commit(chain))]
    if run.stage:
        lines.append(("DVC stage", f"{run.address}, hash {tags.get(HASH, 'unknown')}"))
        lines.append(("data", f"{tags.get('data', 'unknown')}, manifest's SHA-256 {tags.get('data.hash', 'unknown')}"))
        lines += [("input", f"{name}, digest {digest}") for name, digest in run.inputs]
    lines.append(("Prefect flow run", _flow_run(chain)))
    lines.append(("MLflow run", f"{run.id} {run.name}, {run.status}"))
    if chain.parent is not None:
        lines.append(("below MLflow run", f"{chain.parent.id} {chain.parent.name}, {chain.parent.status}"))
    if run.stage in (None, "student") or chain.versions:
        lines.append(("model version", ", ".join(chain.versions) or "none published"))
    if chain.image:
        lines.append(("image", ", ".join(f"{key} {value}" for key, value in chain.image.items())))
    if chain.restorable is not None:
        lines.append(("artifacts", chain.restorable))
    return lines


def as_json(chains: Sequence[Chain]) -> str:
    """Returns chains for programs."""
    return json.dumps(
        [
            {
                "git_commit": chain.run.tags.get(COMMIT),
                "dvc_stage": chain.run.address,
                "dvc_stage_hash": chain.run.tags.get(HASH),
                "data_hash": chain.run.tags.get("data.hash"),
                "prefect_flow_run": chain.flow.tags.get(FLOW_RUN) if chain.flow else None,
                "mlflow_run": chain.run.id,
                "mlflow_parent_run": chain.parent.id if chain.parent else None,
                "model_versions": list(chain.versions),
                "image": chain.image,
                "artifacts": chain.restorable,
            }
            for chain in chains
        ],
        indent=2,
    )


def _commit(chain: Chain) -> str:
    commit = chain.run.tags.get(COMMIT, "none")
    if commit == "none":
        return "none: it ran outside of git, or was a flow run that says none"
    return f"{commit} {chain.subject}" if chain.subject else f"{commit}, which is not in this repository"


def _flow_run(chain: Chain) -> str:
    flow = chain.flow
    if flow is None:
        return "none: the stage ran by hand or by `dvc repro`"
    url = flow.tags.get("prefect.flow_run_url")
    return f"{flow.tags.get(FLOW_RUN, 'unknown')} {flow.name}" + (f", {url}" if url else "")
