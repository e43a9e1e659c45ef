"""Which processes a flow run has at a moment, and those that a kill of each kind takes."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.chaos.project import Project
from infra.leftovers import members

# By SIGKILL, each alone; "run" is all processes of a flow run at once, as a machine loses them; "preempt" is SIGTERM to
# the flow. The worker comes last, so that a short trial has no flow run that nobody watches.
KINDS = ("stage", "s3", "flow", "prefect", "preempt", "postgres", "run", "worker")
TWICE = ("stage", "s3", "flow", "prefect", "postgres")  # come twice as often as the others
NOTICE = 10.0  # seconds that a preempted run has


@dataclass(frozen=True)
class Scene:
    """The processes under way.

    Attributes:
        stages: Names in dvc.yaml of the stages that run, by process.
        flows: Ids of the flow runs that run, by process.
        others: What else belongs to a run: DVC's own, and shells.
    """

    stages: Mapping[int, str] = field(default_factory=dict)
    flows: Mapping[int, str] = field(default_factory=dict)
    others: tuple[int, ...] = ()

    @property
    def run(self) -> list[int]:
        """Every process of a flow run, the flow first."""
        return [*self.flows, *self.others, *self.stages]

    @property
    def under_way(self) -> tuple[str, ...]:
        """The stages under way."""
        return tuple(sorted(set(self.stages.values())))


def look(project: Project) -> Scene:
    """Returns what is under way now."""
    stages, flows, others = {}, {}, []
    for process in members(project.folder, "worker"):
        with suppress(psutil.Error, OSError):
            command, environment = process.cmdline(), process.environ()
            if command[1:3] == ["-m", "nfm"]:
                stages[process.pid] = environment.get("DVC_STAGE", "none")
            elif "prefect.engine" in command:
                flows[process.pid] = environment.get("PREFECT__FLOW_RUN_ID", "none")
            elif "PREFECT__FLOW_RUN_ID" in environment:
                others.append(process.pid)
    return Scene(stages, flows, tuple(others))


def victims(kind: str, scene: Scene, project: Project, stage: int | None = None) -> list[int]:
    """Returns the processes that a kill takes, none where there are none.

    Arguments:
        kind: One of KINDS.
        scene: What is under way.
        project: Whose servers.
        stage: The stage's process that is meant, where there are several.
    """
    match kind:
        case "stage":
            return [pid for pid in scene.stages if pid == stage] or list(scene.stages)[:1]
        case "flow" | "preempt":
            return list(scene.flows)
        case "run":
            return scene.run if scene.flows else []
    conditions = project.stack.supervisor.conditions()
    return [c.pid for name, c in conditions.items() if c.pid and (name == kind or name.startswith(f"{kind}-"))]


def kill(kind: str, pids: list[int]) -> None:
    """Sends SIGKILL, or SIGTERM for a preemption."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if kind == "preempt" else signal.SIGKILL)


def seconds_to_end(pids: list[int], limit: float = 3 * NOTICE) -> float:
    """Returns how long processes take to end; no longer than a limit is waited."""
    began = time.monotonic()
    while any(_is_alive(pid) for pid in pids) and time.monotonic() - began < limit:
        time.sleep(0.05)
    return time.monotonic() - began


def _is_alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
