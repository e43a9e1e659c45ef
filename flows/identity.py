"""Which code a flow run runs: so that stages on several machines are stages of one program."""

import hashlib
from pathlib import Path

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from pydantic import BaseModel, Field

from flows.checkout import Checkout
from flows.workspace import commit_of, git
from nfm.errors import InputError
from nfm.pins import LOCK, differing, pins


class Identity(BaseModel):
    """What two machines must have in common to run stages of one flow run."""

    commit: str = Field(description="Hash of the commit")
    lock: str = Field(description=f"SHA-256 of {LOCK}")


def identity_of(checkout: Checkout) -> Identity:
    """Returns the identity of a checkout whose code is that of its commit.

    Raises:
        InputError: What decides a result is not committed, or the folder is no git checkout.
    """
    root = checkout.root
    # Only what stages read: dvc.lock and the results are written by every run, and the params travel with a request.
    read = ["dvc.yaml", *checkout.sources()]
    if changed := git(root, "status", "--porcelain", "--untracked-files=all", "--", *read).splitlines():
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"{changed[0][3:]}{more} in {root} is not as committed, so that stages on other machines would run other "
            "code; commit and push it, or run all stages here with --set infra={}"
        )
    commit = git(root, "rev-parse", "HEAD").strip()
    return Identity(commit=commit, lock=_digest(root / LOCK))


def refuse_another(asker: Identity, checkout: Checkout) -> None:
    """Refuses to work for a flow run of other code.

    Raises:
        InputError: The commit or the lock is not the asker's, or what decides a result is not committed here.
    """
    own, root = identity_of(checkout), checkout.root
    if own.commit != asker.commit:
        raise InputError(
            f"the worker's folder {root} is at commit {own.commit[:12]}, but the flow run that asks is at "
            f"{asker.commit[:12]}; bring both to one commit (git pull here, or `prefect deploy --all` where it clones)"
        )
    if own.lock != asker.lock:
        raise InputError(
            f"{LOCK} in the worker's folder {root} has SHA-256 {own.lock[:12]}, but that of the flow run that asks has "
            f"{asker.lock[:12]}; bring both to one lock and run `make .venv/.ready`"
        )


def check_deployed(root: Path) -> None:
    """Holds the folder and the packages that a deployment's run finds against what was deployed and locked.

    A folder is of its user's, so another commit than the deployed one is no error, and noted in the log; but nobody
    sees what packages a worker has. A run by hand is not checked.

    Raises:
        InputError: A package has another version than `requirements.lock` names.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return
    deployed, here = run.deployment_version, commit_of(root).removesuffix("-dirty")
    if deployed and here not in ("none", deployed):
        get_run_logger().warning(
            f"{root} is at commit {here[:12]}, and the deployment was made at {deployed[:12]}: the folder's code runs; "
            "`prefect deploy --all` brings both to one"
        )
    if (root / LOCK).is_file():
        refuse_other_packages(root)


def refuse_other_packages(root: Path) -> None:
    """Refuses to run where an installed package is not as locked; one that is missing may be of no use here.

    Raises:
        InputError: A package has another version than `requirements.lock` names.
    """
    wanted = pins(root / LOCK)
    wrong = [f"{name} {present}" for name, present in differing(wanted).items() if present is not None]
    if wrong:
        name = wrong[0].partition(" ")[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"the worker has {wrong[0]} installed, but {LOCK} in {root} has {name} {wanted[name]}{more}; run "
            "`make .venv/.ready` there, and start the worker by that environment's prefect"
        )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "none"
