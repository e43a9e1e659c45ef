"""The task that brings one DVC stage up to date."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.checkout import BusyError, Checkout
from flows.process import Processes
from flows.slots import Slots
from nfm.errors import InputError
from nfm.tracker import record_of
from nfm.tracking import NoParent

Outcome = Literal["Cached", "Pulled", "Restored", "Completed"]

# What another try can mend, by state name: how often, and what DVC prints.
RETRIES = {"Busy": 60, "Unreachable": 4}
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
# Advice of DVC's for its command line.
HINTS = (
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
UNREACHABLE = re.compile(
    r"could not connect|failed to connect|connection (was|refused|reset|aborted|error)|"
    r"timed? ?out|name resolution|name or service not known|unreachable|SlowDown|"
    r"ServiceUnavailable|InternalError",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Context:
    """What the stages of one flow run share.

    Attributes:
        checkout: The DVC project.
        processes: The commands under way.
        history: The flow run's own run in the history of experiments.
        slots: Held by stages that run; one that is up to date needs none.
        environment: Variables for the stages, on top of this process's.
    """

    checkout: Checkout
    processes: Processes
    history: NoParent
    slots: Slots
    environment: dict[str, str] = field(default_factory=dict)


def _can_mend(task: Any, task_run: Any, state: State[Any]) -> bool:
    return task_run.run_count <= RETRIES.get(state.name or "", 0)


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=NO_CACHE,  # DVC alone knows what is up to date
    retries=max(RETRIES.values()),
    retry_delay_seconds=[1, 2, 5, 10, 20, 60],
    retry_condition_fn=_can_mend,
)
def run_stage(name: str, context: Context, limits: Sequence[str] = (), urgency: int = 0) -> State[None]:
    """Brings one stage up to date, all of whose upstream stages are.

    Arguments:
        name: The stage's address in dvc.yaml.
        context: What the stages of the flow run share.
        limits: Prefect concurrency limits to hold a slot of, unless the stage is up to date.
        urgency: Of stages that wait for a slot the one with the highest goes first.

    Returns:
        Completed, by the name of "Cached" (nothing to do), "Pulled" (outputs fetched from the
        remote), "Restored" (outputs of an earlier run with the same inputs) or "Completed"
        (executed). Else Failed with one sentence; by the name of "Busy" or "Unreachable" it is
        tried again.
    """
    try:
        if context.checkout.is_current(name):
            return _done(name, context, "Cached")
        with ExitStack() as held:
            held.enter_context(context.slots.taken(urgency))
            if limits := _existing(limits):
                held.enter_context(concurrency(list(limits)))
            return _reproduce(name, context)
    except BusyError as error:
        return Failed(name="Busy", message=str(error))
    except InputError as error:
        return Failed(message=str(error))


def _reproduce(name: str, context: Context) -> State[None]:
    """Lets DVC pull, restore or execute a stage, and checks what that left."""
    logger, lines = get_run_logger(), []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.strip() and not line.strip().startswith(HINTS):
            logger.info(line)

    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
    command += ["--pull"] * context.checkout.has_remote + [name]
    try:
        status = context.processes.run(command, context.checkout.root, _environment(context), on_line)
    finally:
        context.checkout.forget(name)
    if context.processes.stopped:
        return Failed(name="Stopped", message=f"{name} was stopped with its flow run")
    if status != 0:
        return _failure(name, status, lines)
    return _verified(name, context) or _done(name, context, _outcome(name, lines))


def _verified(name: str, context: Context) -> State[None] | None:
    """Returns the failure of a stage that DVC calls done but whose outputs are not sound."""
    if damaged := context.checkout.damaged(name):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return Failed(
            message=f"{name}: {damaged[0]}{more} is damaged here or in DVC's cache, as after a "
            "full disk; the damaged copy is removed: check the space left and run again"
        )
    if not context.checkout.is_current(name):
        return Failed(
            message=f"{name} is not up to date although DVC has just run it; something changes its "
            f"files meanwhile, see `dvc status {name}`"
        )
    return None


def _done(name: str, context: Context, outcome: Outcome) -> State[None]:
    run_id = record_of(context.checkout.root, name).get("run_id")
    context.history.note(name, outcome, run_id)
    made_by = f"made by MLflow run {run_id}" if run_id else "no record of the run that made it"
    return Completed(name=outcome, message=made_by)


def _outcome(name: str, lines: Sequence[str]) -> Outcome:
    """Reads off DVC's messages what it has done."""
    if f"Running stage '{name}':" in lines:
        return "Completed"
    if any(line.startswith(f"Stage '{name}' is cached - skipping run") for line in lines):
        return "Restored"
    if any(line.startswith("Pulling data for") for line in lines):
        return "Pulled"
    return "Cached"


def _failure(name: str, status: int, lines: Sequence[str]) -> State[None]:
    """Turns DVC's last words, or the stage's own, into a state."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = "; ".join(errors) or f"dvc repro ended with {_ending(status)}"
    if any(words in reason for words in BUSY):
        return Failed(name="Busy", message=reason)
    if f"Running stage '{name}':" not in lines:
        unreachable = UNREACHABLE.search("\n".join(lines))
        return Failed(name="Unreachable" if unreachable else None, message=f"{name}: {reason}")
    code = re.search(r"exited with (-?\d+)", reason)
    return Failed(message=f"{name}: {_last_words(lines, int(code[1]) if code else status)}")


def _last_words(lines: Sequence[str], status: int) -> str:
    """Returns the sentence that the command line prints for bad input, or how the stage ended."""
    own = [line for line in lines if line.strip() and not line.startswith("ERROR: ")]
    sentences = [line.removeprefix("nfm: ") for line in own if line.startswith("nfm: ")]
    if status == 2 and sentences:
        return sentences[-1]
    return f"the stage ended with {_ending(status)}; its last line: {own[-1] if own else 'none'}"


def _ending(status: int) -> str:
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def _environment(context: Context) -> dict[str, str]:
    """Returns the stages' environment: this interpreter's programs first, output unbuffered."""
    programs = os.path.dirname(sys.executable)
    return {
        # Some S3-compatible stores refuse the checksums that boto3 adds since 1.36.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        **context.history.environment(),
        **context.environment,
    }


def _existing(limits: Sequence[str]) -> list[str]:
    """Drops the limits that nobody has created: on a laptop a stage runs without."""
    if not limits:
        return []
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    found = []
    with get_client(sync_client=True) as client:
        for limit in limits:
            try:
                client.read_global_concurrency_limit_by_name(limit)
                found.append(limit)
            except ObjectNotFound:
                continue
    return found
