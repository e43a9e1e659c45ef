"""Runs whose process is gone without a word: called Crashed, first the flow run, then its tasks.

1. A flow run that lives gives a sign of life every three minutes, Prefect's heartbeat. An automation on the server
   calls one Crashed that gives none, and another one a run that a worker took and never started; a deploy step of
   prefect.yaml installs both, for runs with the tag `nfm`.
2. Tasks give no signs. Those of a flow run that has ended are called Crashed by the next one, at its start and end.
3. A server that is killed too may forget that it waits for a sign. Where a deployment has one slot, the run that has it
   calls every other one Crashed that has been Running or Pending since before, for both states take the slot.
4. Nothing is lost by it: `prefect flow-run retry`, or another run, goes on, and what had finished is Cached.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.automations import AutomationCore, EventTrigger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

NAME = "nfm: a run without a sign of life is crashed"
NEVER = "nfm: a run that was never started is crashed"
SIGNS = {"prefect.flow-run.heartbeat", "prefect.flow-run.Running"}  # a run may be killed before its first heartbeat
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
FLOWS = ("nfm", "nfm-stages", "nfm-shares", "nfm-retrain")
PAGE = 200  # what the server returns at most


def install(within: float = 600.0, pending: float = 3600.0) -> dict[str, str]:
    """Makes the automations on the Prefect server, or renews those that are there; a step of `prefect deploy`.

    Arguments:
        within: Silence after which a flow run counts as dead, seconds; three signs of life by default.
        pending: Seconds that a flow run may take to start, as a pod that waits for its node and image.

    Returns:
        The first automation's id, for later steps.
    """
    dead = _automation(
        NAME, "Flow runs with the tag nfm whose process was killed, or whose machine is gone", SIGNS, within
    )
    never = _automation(
        NEVER, "Flow runs with the tag nfm whose worker was killed over them", {"prefect.flow-run.Pending"}, pending
    )
    with get_client(sync_client=True) as client:
        first, _ = [_make(client, automation) for automation in (dead, never)]
    return {"automation": str(first)}


def _automation(name: str, description: str, after: set[str], within: float) -> AutomationCore:
    """Returns what calls runs Crashed after which nothing is heard for a time, after one of some events."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},  # pyright: ignore
            match_related={"prefect.resource.id": "prefect.tag.nfm", "prefect.resource.role": "tag"},  # pyright: ignore
            after=after,
            expect={"prefect.flow-run.*"},  # another sign, or its end, by whatever name
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=within),
        ),
        actions=[_crash(within)],
    )


def _make(client: SyncPrefectClient, automation: AutomationCore) -> UUID:
    found = [each.id for each in client.read_automations_by_name(automation.name)]
    first, *more = found or [client.create_automation(automation)]
    client.update_automation(first, automation)
    for double in more:  # as two deploys at once may make
        client.delete_automation(double)
    return first


def sweep(settled: float = 60.0) -> int:
    """Calls runs Crashed that are called Running or Pending and cannot be: see the top of this file, 2 and 3.

    Arguments:
        settled: How long ago a flow run must have ended before its tasks are, seconds, for states of tasks reach the
            server later than their flow's.

    Returns:
        How many there were.
    """
    try:
        with get_client(sync_client=True) as client:
            displaced = _displaced(client)
            for run in displaced:
                client.set_flow_run_state(run.id, Crashed(message="another run has its deployment's only slot"))
            orphans = _orphans(client, datetime.now(UTC) - timedelta(seconds=settled))
            for task in orphans:
                client.set_task_run_state(task.id, Crashed(message="its flow run has ended without it"), force=True)
    except (httpx.HTTPError, ObjectNotFound):
        return 0  # a server that is away is no reason to stop; the next flow run sweeps
    return len(displaced) + len(orphans)


def _displaced(client: SyncPrefectClient) -> list[Any]:
    """Returns the runs of the current run's deployment that have lost its only slot to it."""
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    if own is None or own.deployment_id is None:
        return []
    slots = client.read_deployment(own.deployment_id).global_concurrency_limit
    if slots is None or slots.limit != 1:
        return []
    holding: dict[str, Any] = {
        "deployment_id": {"any_": [own.deployment_id]},
        "state": {"type": {"any_": ["RUNNING", "PENDING"]}},
    }
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(holding), limit=PAGE)
    since = client.read_flow_run(own.id).start_time
    # One that came later has the slot itself, and this run has lost it.
    return [run for run in found if run.id != own.id and since and run.state and run.state.timestamp < since]


def _crash(within: float) -> ChangeFlowRunState:
    message = f"no sign of life for {within:g} seconds"
    return ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)


def _orphans(client: SyncPrefectClient, before: datetime) -> list[Any]:
    ours: dict[str, Any] = {"name": {"any_": list(FLOWS)}}
    ended: dict[str, Any] = {"state": {"type": {"any_": list(ENDED)}}, "end_time": {"before_": before}}
    running: dict[str, Any] = {"state": {"type": {"any_": ["RUNNING"]}}}
    return client.read_task_runs(
        flow_filter=FlowFilter.model_validate(ours),
        flow_run_filter=FlowRunFilter.model_validate(ended),
        task_run_filter=TaskRunFilter.model_validate(running),
        limit=PAGE,
    )
