"""Stages on other machines: asked for by their deployment, once however often they are asked for."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.states import Cancelling, Failed

from flows.identity import Identity
from nfm.config import nearest
from nfm.errors import InputError

FLOW = "nfm-stages"
ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
POLL = 2.0  # seconds between questions after a run on another machine


@dataclass(frozen=True)
class Elsewhere:
    """What a flow run asks other machines for.

    Attributes:
        places: Deployments of the flow `nfm-stages`, by stage.
        params: The params of the flow run, which the other machines run with.
        identity: The code that they must have.
        recipe: The recipe that they are of, for the history; None for params.yaml.
    """

    places: Mapping[str, str]
    params: Mapping[str, Any]
    identity: Identity
    recipe: str | None

    def check(self) -> None:
        """Looks the deployments up.

        Raises:
            InputError: The Prefect server has no deployment of a name.
        """
        with get_client(sync_client=True) as client:
            for stage, place in self.places.items():
                try:
                    client.read_deployment_by_name(f"{FLOW}/{place}")
                except ObjectNotFound as error:
                    raise InputError(
                        f"infra sends {stage.partition('@')[0]} to {place!r}, but the Prefect server "
                        f"at {client.api_url} has no deployment {FLOW}/{place}{_nearest(place, client)}"
                    ) from error

    def run(self, name: str, stopped: Callable[[], bool]) -> State[None]:
        """Has a stage run on another machine.

        Of two flow runs that ask for the same, at once or since the first was killed, the second
        waits for what the first has started.

        Arguments:
            name: The stage.
            stopped: Whether this flow run is being stopped, and the other is to be cancelled.

        Returns:
            The final state of the run there: Completed, or Failed with one sentence, by the name of
            "Crashed" where another try may mend it.
        """
        # All of the params, since those of the other machine's params.yaml may be others; and there it must run.
        asked = {"stages": [name], "overrides": {**self.params, "infra": {}}, "asker": self.identity.model_dump()}
        content = json.dumps(asked, sort_keys=True).encode()
        tag = f"request:{hashlib.sha256(content).hexdigest()[:16]}"
        place = f"{FLOW}/{self.places[name]}"
        with get_client(sync_client=True) as client:
            ended: Any = {"tags": {"all_": [tag]}, "state": {"type": {"any_": ENDED}}}
            number = client.count_flow_runs(flow_run_filter=FlowRunFilter.model_validate(ended))
            run: Any = run_deployment(  # pyright: ignore
                place,
                parameters={**asked, "recipe": self.recipe},
                flow_run_name=name,
                timeout=0,
                tags=["nfm", "stage", tag],
                idempotency_key=f"{tag}:{number}",
            )
            get_run_logger().info(f"{name} is asked of {place}, flow run {run.name!r} ({run.id})")
            state = _waited(client, run.id, stopped)
        if state.is_completed() or stopped():
            return state
        if state.is_crashed():
            return Failed(name="Crashed", message=f"{name} crashed at {place}: {state.message}")
        return Failed(message=state.message or f"{name} ended as {state.name} at {place}")


def _waited(client: SyncPrefectClient, run_id: Any, stopped: Callable[[], bool]) -> State[Any]:
    """Returns the final state of a flow run; cancels it when this one is stopped."""
    logger, seen = get_run_logger(), None
    while True:
        if stopped():
            client.set_flow_run_state(run_id, Cancelling())
            return Failed(name="Stopped", message="was stopped with the flow run that asked for it")
        state = _state(client, run_id)
        if state is not None and state.name != seen:
            seen = state.name
            logger.info(f"there: {seen}{f' ({state.message})' if state.message else ''}")
        if state is not None and state.is_final():
            return state
        time.sleep(POLL)


def _state(client: SyncPrefectClient, run_id: Any) -> State[Any] | None:
    """Returns a flow run's state; None while the server does not answer, which may be restarting."""
    try:
        return client.read_flow_run(run_id).state
    except PrefectHTTPStatusError as error:
        if error.response.status_code < 500:
            raise
    except httpx.TransportError:
        pass
    return None


def _nearest(place: str, client: SyncPrefectClient) -> str:
    ours = FlowFilter.model_validate({"name": {"any_": [FLOW]}})
    known = [deployment.name for deployment in client.read_deployments(flow_filter=ours)]
    return nearest(place, known) if known else "; make those of prefect.yaml with `prefect deploy --all`"
