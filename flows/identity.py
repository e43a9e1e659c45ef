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


def check_deployed(root: Path, code: bool = True) -> None:
    """Holds the folder and the packages that a deployment's run finds against what was deployed and locked.

    A run by hand is not checked.

    Arguments:
        root: The folder.
        code: Whether its code has to be that of the commit that was deployed.

    Raises:
        InputError: A package has another version than `requirements.lock` names, or the code is another.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return
    if (root / LOCK).is_file():
        refuse_other_packages(root)
    here = commit_of(root).removesuffix("-dirty")
    if code and run.deployment_version and here not in ("none", run.deployment_version):
        _refuse_other_code(root, here, run.deployment_version)


def _refuse_other_code(root: Path, here: str, deployed: str) -> None:
    """Refuses a commit whose code is not that of the one deployed; params, dvc.lock, results and notes may differ.

    Raises:
        InputError: It does, or the folder does not know the deployed commit.
    """
    way = "`prefect deploy --all` there deploys what is in it, `git checkout` brings back what was deployed"
    try:
        read = ["dvc.yaml", LOCK, "flows", *Checkout(root).sources()]
        changed = git(root, "diff", "--name-only", deployed, here, "--", *read).splitlines()
    except InputError as error:
        raise InputError(
            f"{root} is at commit {here[:12]} and cannot be held against {deployed[:12]}, which was deployed; {way}"
        ) from error
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"{root} is at commit {here[:12]}, where {changed[0]}{more} is not as at {deployed[:12]}, which was "
            f"deployed; {way}"
        )
    get_run_logger().info(f"{root} is at commit {here[:12]}, with the code of {deployed[:12]}, which was deployed")


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
