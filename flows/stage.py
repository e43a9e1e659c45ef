"""The task that brings one DVC stage up to date."""

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows import words
from flows.checkout import BusyError, Checkout
from flows.clock import wrong_clock
from flows.elsewhere import Elsewhere
from flows.fan_out import FanOut, run_shares
from flows.process import Processes, ending, environment_here
from flows.slots import Slots
from flows.words import Outcome
from nfm.errors import InputError
from nfm.tracker import record_of
from nfm.tracking import NoParent

# What another try can mend, by state name: how often. Six tries more wait 98 seconds, where a store may restart in 60.
RETRIES = {"Busy": 60, "Unreachable": 6, "Crashed": 2}
DELAYS: list[float] = [1, 2, 5, 10, 20, 60]  # seconds before each try, the last one for all that follow


@dataclass(frozen=True)
class Context:
    """What the stages of one flow run share.

    Attributes:
        checkout: The DVC project.
        upstream: For every stage all stages upstream of it.
        processes: The commands under way.
        history: The flow run's own run in the history of experiments.
        slots: Held by stages that run; one that is up to date needs none.
        environment: Variables for the stages, on top of this process's.
        elsewhere: Asks other machines for stages; None if all run here.
        asked: Stages that another machine asks for: what is upstream of them is restored and never
            run; None if nobody does.
        pushes: Stages whose outputs are sent to the DVC remote when they are up to date.
        pushed: Those whose outputs this flow run has sent.
        current: Stages to be sent that were up to date when the flow run began.
        doubted: Those of whose outputs the remote lacks files that it was thought to have.
        fan_out: How the work of stages is shared out that can be.
        shared: Commands of those stages, by name.
    """

    checkout: Checkout
    upstream: Mapping[str, frozenset[str]]
    processes: Processes
    history: NoParent
    slots: Slots
    environment: dict[str, str] = field(default_factory=dict)
    elsewhere: Elsewhere | None = None
    asked: frozenset[str] | None = None
    pushes: frozenset[str] = frozenset()
    pushed: set[str] = field(default_factory=set)
    current: frozenset[str] = frozenset()
    doubted: set[str] = field(default_factory=set)
    fan_out: FanOut | None = None
    shared: Mapping[str, str] = field(default_factory=dict)


def _can_mend(task: Any, task_run: Any, state: State[Any]) -> bool:
    return task_run.run_count <= RETRIES.get(state.name or "", 0)


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=NO_CACHE,  # DVC alone knows what is up to date
    retries=max(RETRIES.values()),
    retry_delay_seconds=DELAYS,
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
        remote), "Restored" (outputs of an earlier run with the same inputs), "Completed" (executed)
        or "Elsewhere" (executed on another machine). Else Failed with one sentence; by the name of
        "Busy", "Unreachable" or "Crashed" it is tried again.
    """
    try:
        if context.checkout.is_current(name):
            state = _done(name, context, "Cached")
        elif context.elsewhere and name in context.elsewhere.places:
            state = _run_elsewhere(name, context, context.elsewhere, urgency)
        elif context.asked is None or name in context.asked:
            state = _run_here(name, context, limits, urgency)
        else:
            state = _restore(name, context, urgency) or _missing(name, "was not pushed by the flow run that asks")
        if name in context.pushes - context.pushed and state.is_completed():
            # What was up to date from the start goes at once: a command for each stage would take seconds for each.
            names = sorted(context.current - context.pushed) if name in context.current else [name]
            return push(names, context) or state
        return state
    except BusyError as error:
        return Failed(name="Busy", message=f"{name}: {words.holder([str(error)])}")
    except InputError as error:
        return Failed(message=str(error))


def _run_here(name: str, context: Context, limits: Sequence[str], urgency: int) -> State[None]:
    """Lets DVC pull, restore or execute a stage, and checks what that left."""
    fan_out = context.fan_out if name in context.shared else None
    remote = context.checkout.has_remote
    # Apart from running it: where a remote that is away could pass for one that has nothing.
    if (fan_out or remote) and (state := _restore(name, context, urgency)):
        return state
    with ExitStack() as held:
        slots = min(fan_out.tasks, context.slots.size) if fan_out and fan_out.local else 1
        held.enter_context(context.slots.taken(urgency, slots))
        if limits := _existing(limits):
            held.enter_context(concurrency(list(limits)))
        if fan_out:
            state = run_shares(name, context.shared[name], context.checkout.root, fan_out, slots, context.processes)
            if context.processes.stopped:
                return _stopped(name)
            if not state.is_completed():
                return Failed(message=state.message)
        status, lines = _dvc(context, _repro(name), name)
        if status == 0 and not context.processes.stopped and _comes_damaged(name, context, lines):
            status, lines = _dvc(context, _repro(name), name)
    state = _ended(name, context, status, lines)
    if name in context.doubted and state.is_completed():
        context.checkout.doubt(name)
    return state


def _run_elsewhere(name: str, context: Context, elsewhere: Elsewhere, urgency: int) -> State[None]:
    """Has a stage executed on another machine, unless its outputs can be restored, and restores what that made."""
    if state := _restore(name, context, urgency):
        return state
    # What was made elsewhere has been pushed there.
    inputs = context.upstream[name] - set(elsewhere.places) - context.pushed
    if failure := push(sorted(inputs), context):
        return failure
    answer = elsewhere.run(name, lambda: context.processes.stopped)
    if not answer.is_completed():
        return answer
    state = _restore(name, context, urgency)
    if state is None:
        return _missing(name, f"was made by {elsewhere.places[name]} from other inputs or in another remote")
    return _done(name, context, "Elsewhere") if state.is_completed() else state


def _restore(name: str, context: Context, urgency: int) -> State[None] | None:
    """Lets DVC pull or restore a stage's outputs, without executing anything.

    dvc.lock may name outputs that are nowhere any more, as one from git where other runs have filled the remote; then
    what the run-cache has of another run with these inputs will do.

    Returns:
        Completed or Failed; None where neither the cache nor the remote has the outputs.
    """
    state, lacking = _restored(name, context, urgency)
    if not lacking:
        return state
    files = context.checkout.names_of(name, lacking)
    if context.checkout.disown(name, lacking):
        state, lacking = _restored(name, context, urgency)
    if lacking:
        get_run_logger().warning(
            f"{name}: neither the cache here nor the DVC remote has {files[0]}{_more(files)}; made anew"
        )
        context.doubted.add(name)
    return state


def _restored(name: str, context: Context, urgency: int) -> tuple[State[None] | None, list[str]]:
    """Tries once; returns also the MD5s of the files that are missing, where that is all that is wrong."""
    nothing = shutil.which("false")  # DVC hands a stage's command to $SHELL
    assert nothing is not None
    command = _repro(name, pull=context.checkout.has_remote)
    with context.slots.taken(urgency):
        status, lines = _dvc(context, command, name, quiet=True, SHELL=nothing)
        if status == 0 and not context.processes.stopped and _comes_damaged(name, context, lines):
            status, lines = _dvc(context, command, name, quiet=True, SHELL=nothing)
    if status == 0 and not context.processes.stopped and (damaged := context.checkout.damaged(name)):
        return _spoilt(name, context, damaged), []
    if context.processes.stopped or status == 0:
        return _ended(name, context, status, lines), []
    if kind := words.unreachable(lines):
        return Failed(name=kind, message=f"{name}: {words.short(words.errors(lines))}"), []
    lacking = words.lacking(lines)
    if words.withheld(lines) or (f"Running stage '{name}':" not in lines and not lacking):
        clock = _clock(context, lines)
        return Failed(message=f"{name}: {clock}") if clock else words.failure(name, status, lines), []
    return None, lacking


def _spoilt(name: str, context: Context, damaged: Sequence[str]) -> State[None] | None:
    """Removes copies from the remote that were fetched twice and came damaged; None for the stage to be run."""
    if not (spoilt := context.checkout.spoilt(name)):
        return _damaged(name, damaged)
    get_run_logger().warning(f"{name}: {spoilt[0]}{_more(spoilt)} was damaged in the DVC remote too; removed there")
    context.doubted.add(name)
    return None


def _comes_damaged(name: str, context: Context, lines: Sequence[str]) -> bool:
    """Whether outputs that DVC has restored are damaged; then they are removed and can be fetched or made again."""
    if words.outcome(name, lines) == "Completed" or not (damaged := context.checkout.damaged(name)):
        return False
    get_run_logger().warning(f"{name}: {damaged[0]}{_more(damaged)} was damaged here or in DVC's cache; removed")
    return True


def _ended(name: str, context: Context, status: int, lines: Sequence[str]) -> State[None]:
    """Returns the state of a stage that DVC is done with; where it calls it well, checks what it has left."""
    if context.processes.stopped:
        return _stopped(name)
    if status != 0:
        return words.failure(name, status, lines)
    if damaged := context.checkout.damaged(name):
        return _damaged(name, damaged)
    if not context.checkout.is_current(name):
        return Failed(
            message=f"{name} is not up to date although DVC has just run it; something changes its "
            f"files meanwhile, see `dvc status {name}`"
        )
    return _done(name, context, words.outcome(name, lines))


def _damaged(name: str, files: Sequence[str]) -> State[None]:
    return Failed(
        message=f"{name}: {files[0]}{_more(files)} is damaged here or in DVC's cache, as after a "
        "full disk; the damaged copy is removed: check the space left and run again"
    )


def _more(files: Sequence[str]) -> str:
    return f" and {len(files) - 1} more" if len(files) > 1 else ""


def _clock(context: Context, lines: Sequence[str]) -> str | None:
    """Returns a sentence where an S3 store refuses this machine for its clock, which its answer may not say."""
    endpoint = context.checkout.s3_endpoint
    if endpoint is None or not words.REFUSED_BY_STORE.search("\n".join(lines)):
        return None
    return wrong_clock(endpoint)


def push(names: Sequence[str], context: Context) -> State[None] | None:
    """Sends the outputs of stages, and how they were made, to the DVC remote.

    Returns:
        The failure, if it failed.
    """
    if not names:
        return None
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "push", "--run-cache", *names]
    status, lines = _dvc(context, command)
    if context.processes.stopped:
        return _stopped(names[0])
    if status == 0:
        context.pushed.update(names)
        return None
    kept = f"{', '.join(names)}: the outputs are here and not in the DVC remote: "
    if words.is_busy("\n".join(lines)):
        return Failed(name="Busy", message=kept + words.holder(lines))
    said = words.short(words.errors(lines)) or f"dvc push ended with {ending(status)}"
    return Failed(name=words.unreachable(lines), message=kept + (_clock(context, lines) or said))


def _repro(name: str, pull: bool = False) -> list[str]:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
    return [*command, *["--pull"] * pull, name]


def _dvc(
    context: Context, command: Sequence[str], name: str | None = None, quiet: bool = False, **environment: str
) -> tuple[int, list[str]]:
    """Runs a DVC command, which may change a stage; returns its exit status and the lines that it has printed."""
    logger, lines, level = get_run_logger(), [], logging.DEBUG if quiet else logging.INFO

    def on_line(line: str) -> None:
        nonlocal level
        lines.append(line)
        if words.is_busy(line):  # what follows is advice for a person; the stage's state says it shorter
            level = logging.DEBUG
        if line.strip() and not line.strip().startswith(words.HINTS):
            logger.log(level, line)

    folder, environment = context.checkout.root, _environment(context) | environment
    try:
        context.checkout.clear()
        status = context.processes.run(command, folder, environment, on_line)
        if status != 0 and words.EMPTY in words.errors(lines):
            context.checkout.clear(empty_runs=True)
            lines.clear()
            status = context.processes.run(command, folder, environment, on_line)
    finally:
        if name is not None:
            context.checkout.forget(name)
    return status, lines


def _stopped(name: str) -> State[None]:
    return Failed(name="Stopped", message=f"{name} was stopped with its flow run")


def _missing(name: str, why: str) -> State[None]:
    return Failed(message=f"{name} is in no cache here and not in the DVC remote: it {why}; run the flow again")


def _done(name: str, context: Context, outcome: Outcome) -> State[None]:
    run_id = record_of(context.checkout.root, name).get("run_id")
    context.history.note(name, outcome, run_id)
    made_by = f"made by MLflow run {run_id}" if run_id else "no record of the run that made it"
    return Completed(name=outcome, message=made_by)


def _environment(context: Context) -> dict[str, str]:
    """Returns the environment of a stage of the flow run."""
    return {**environment_here(), **context.history.environment(), **context.environment}


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
