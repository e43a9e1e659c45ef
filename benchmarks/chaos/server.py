"""What the Prefect server of a stack says of flow runs and their tasks."""

import time
from typing import Any

import httpx

from infra.settings import Settings

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# What must not stay. A task whose upstream has failed ends as NotReady, which is Pending to the server.
LIVE = {"flow_runs": ("RUNNING", "PENDING", "CANCELLING"), "task_runs": ("RUNNING", "CANCELLING")}
SILENT = "no sign of life"  # the automation's message
SECONDS = 20.0  # for an answer
PAGE = 200


class Server:
    """The server, which may be away at any moment."""

    def __init__(self, settings: Settings) -> None:
        user, _, password = settings["NFM_PREFECT_AUTH"].partition(":")
        self._client = httpx.Client(base_url=settings.prefect_url, auth=(user, password), timeout=SECONDS)

    def state(self, run_id: str) -> tuple[str, str] | None:
        """Returns a flow run's state, type and message; None where there is no answer."""
        try:
            answer = self._client.get(f"/flow_runs/{run_id}")
            state = answer.json()["state"] if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None
        return (state["type"], state.get("message") or "") if state else None

    def live(self, what: str) -> list[dict[str, Any]]:
        """Returns the flow runs or the task runs, by name of the route, that the server believes to be under way."""
        return self._all(what, {what: {"state": {"type": {"any_": list(LIVE[what])}}}})

    def found_dead(self) -> int:
        """Returns how many flow runs the automation has called Crashed."""
        crashed = {"flow_runs": {"state": {"type": {"any_": ["CRASHED"]}}}}
        return sum(SILENT in (run["state"].get("message") or "") for run in self._all("flow_runs", crashed))

    def clear(self) -> None:
        """Deletes flow runs that have not ended, so that the next round has a server to itself."""
        waiting = {"flow_runs": {"state": {"type": {"any_": [*LIVE["flow_runs"], "SCHEDULED", "PAUSED"]}}}}
        for run in self._all("flow_runs", waiting):
            self._client.delete(f"/flow_runs/{run['id']}")

    def _all(self, what: str, content: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self._page(what, {**content, "limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def _page(self, what: str, content: dict[str, Any]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = self._client.post(f"/{what}/filter", json=content)
                if answer.status_code == 200:
                    return answer.json()
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError("the Prefect server does not answer")
            time.sleep(0.5)
