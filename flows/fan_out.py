"""The work of a stage shared among tasks, over the task runner that the params name.

1. A stage whose `meta.shares` in dvc.yaml is true has a command that takes `--share I/N`: it does that share of the
   work where the stage finds it, and nothing twice. The flow runs N of those as tasks, then the stage.
2. Only for a stage that DVC can neither pull nor restore; what the stage then writes is what it writes alone.
3. Threads are this machine's. A Dask or Ray cluster is given by its address; its workers see the project's folder
   under the same path.
"""

import shlex
from collections.abc import Mapping
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import wait
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.process import Processes, environment_here, last_words
from nfm.errors import InputError

FLOW = "nfm-shares"
CRASHES = 2  # how often a share that was killed is tried again


@dataclass(frozen=True)
class FanOut:
    """How the work of a stage is shared out.

    Attributes:
        tasks: Among how many tasks.
        runner: "threads", "dask" or "ray".
        address: Of a running cluster; None for one of the flow run's own.
    """

    tasks: int
    runner: str
    address: str | None

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "FanOut | None":
        """Reads it off checked params; None where one task is all."""
        fan_out = cls(**params["run"]["fan_out"])
        return fan_out if fan_out.tasks > 1 else None

    @property
    def local(self) -> bool:
        """Whether the tasks run on this machine, and take its slots."""
        return self.address is None

    def task_runner(self, at_once: int) -> TaskRunner[Any]:
        """Returns the task runner.

        Arguments:
            at_once: How many tasks run at once, where that is not the cluster's to say.

        Raises:
            InputError: Its package is not installed.
        """
        try:
            match self.runner:
                case "dask":
                    from prefect_dask.task_runners import DaskTaskRunner

                    own = {"n_workers": at_once, "threads_per_worker": 1, "dashboard_address": None}
                    return DaskTaskRunner(address=self.address, cluster_kwargs=None if self.address else own)
                case "ray":
                    from prefect_ray.task_runners import RayTaskRunner

                    own = {"num_cpus": at_once, "include_dashboard": False}
                    return RayTaskRunner(address=self.address, init_kwargs=None if self.address else own)
        except ImportError as error:
            raise InputError(
                f"run.fan_out.runner is {self.runner!r}, but prefect_{self.runner} is not installed here; "
                f"pip install 'nfm[{self.runner}]', or use threads"
            ) from error
        return ThreadPoolTaskRunner(max_workers=at_once)


def _was_killed(task: Any, task_run: Any, state: State[Any]) -> bool:
    return state.name == "Crashed" and task_run.run_count <= CRASHES


@task(
    name="share",
    task_run_name="{name} {share}",
    cache_policy=NO_CACHE,
    retries=CRASHES,
    retry_condition_fn=_was_killed,
)
def run_share(name: str, share: str, command: str, folder: Path, processes: Processes | None) -> State[None]:
    """Does one share of a stage's work, wherever the task runner has put it.

    Arguments:
        name: The stage's address in dvc.yaml.
        share: Which one, as I/N.
        command: The stage's.
        folder: The project.
        processes: Those of the flow run, where this is the same process.
    """
    logger, lines = get_run_logger(), []

    def on_line(line: str) -> None:
        lines.append(line)
        logger.info(line)

    shell = ["/bin/sh", "-c", f"exec {command} --share {shlex.quote(share)}"]
    status = (processes or Processes()).run(shell, folder, environment_here(), on_line)
    if status == 0:
        return Completed(message=f"share {share} of {name} is done")
    kind = "Crashed" if status < 0 and not (processes and processes.stopped) else None
    return Failed(name=kind, message=f"share {share} of {name}: {last_words(lines, status)}")


def run_shares(
    name: str, command: str, folder: Path, fan_out: FanOut, at_once: int, processes: Processes
) -> State[None]:
    """Does all shares of a stage's work, as a flow run of its own.

    Arguments:
        name: The stage's address in dvc.yaml.
        command: The stage's.
        folder: The project.
        fan_out: Among how many tasks, and what runs them.
        at_once: How many run at once, where that is not the cluster's to say.
        processes: Of the flow run.

    Returns:
        Completed; or Failed with the sentence of the first share that failed.
    """
    runner = fan_out.task_runner(at_once)
    mine = processes if fan_out.runner == "threads" else None

    @flow(name=FLOW, flow_run_name=name, task_runner=runner)  # pyright: ignore
    def shares() -> State[None]:
        futures = [
            run_share.submit(name, f"{i}/{fan_out.tasks}", command, folder, mine)  # pyright: ignore
            for i in range(fan_out.tasks)
        ]
        wait(futures)
        failed = [future.state for future in futures if not future.state.is_completed()]
        if failed:
            return Failed(message=f"{failed[0].message} ({len(failed)} of {len(futures)} shares failed)")
        return Completed(message=f"{len(futures)} shares done")

    def apart() -> State[None]:
        # Else a cluster is sent the stage's task along with a share, and what that was given cannot be.
        task: ContextVar[Any] = TaskRunContext.__var__
        task.set(None)
        run: Any = shares
        with tags("nfm"):
            return run(return_state=True)

    return copy_context().run(apart)
