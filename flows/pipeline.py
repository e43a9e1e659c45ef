"""The flow over the graph that dvc.yaml states, and its command line."""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.context import get_run_context
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.checkout import Checkout, Plan
from flows.elsewhere import Elsewhere
from flows.fan_out import FanOut
from flows.identity import check_deployed, identity_of
from flows.neighbours import show_history, tags_of
from flows.parameters import Overrides, Recipe, Stages, overrides_of
from flows.process import Processes
from flows.release import release
from flows.report import closing, publish
from flows.slots import Slots
from flows.stage import Context, run_stage
from flows.workspace import params_of, place_of, workspace
from flows.zombies import sweep
from nfm.errors import InputError
from nfm.tracking import NoParent, open_parent

GIB = 2**30
STAGE_MEMORY = 2 * GIB
THREADS = 64  # tasks that wait for others hold a thread each; `workers` says how many stages run
SET = "a param by its dotted key, such as student.train.steps=100; may be repeated"
REFUSED = "Refused"  # state of a flow run on bad input


def workers() -> int:
    """Returns how many stages run at once: one a core, and 2 GiB of memory for each.

    The environment variable NFM_WORKERS overrides.
    """
    if asked := os.environ.get("NFM_WORKERS"):
        return max(1, int(asked))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores or 1, memory // STAGE_MEMORY))


@flow(name="nfm", task_runner=ThreadPoolTaskRunner(max_workers=THREADS))  # pyright: ignore
def pipeline(
    recipe: Recipe | None = None,
    overrides: Overrides | None = None,
    stages: Stages | None = None,
    push: bool = False,
) -> State[None]:
    """Brings the stages of dvc.yaml up to date; what DVC finds up to date is not run.

    Arguments:
        recipe: Name of a recipe to run instead of params.yaml, in a workspace of its own.
        overrides: Params by dotted key, such as {"student.train.steps": 100}, likewise.
        stages: Stages to bring up to date with all upstream of them, such as ["student"], which
            stands for every student; by default the report.
        push: Whether to send the outputs of each stage to the DVC remote, for other machines or
            where this one's disk does not last.
    """
    root = Path.cwd()
    try:
        check_deployed(root)
        params = params_of(root, recipe, overrides)
        folder = workspace(root, params) if recipe or overrides else root
        elsewhere = elsewhere_of(folder, params, recipe)
        return run_graph(
            folder,
            stages or ["report"],
            home=root,
            recipe=recipe or "params.yaml",
            elsewhere=elsewhere,
            fan_out=FanOut.of(params),
            push=push,
            publishes=not overrides,  # what is tried out is no release
        )
    except InputError as error:
        return Failed(name=REFUSED, message=str(error))


def elsewhere_of(folder: Path, params: Mapping[str, Any], recipe: str | None) -> Elsewhere | None:
    """Returns what the params of a project send to other machines; None if nothing.

    Raises:
        InputError: The params name what is no stage or no deployment, or the code is not committed.
    """
    if not params.get("infra"):
        return None
    checkout = Checkout(folder)
    elsewhere = Elsewhere(checkout.placed(params["infra"]), params, identity_of(checkout), recipe)
    elsewhere.check()
    return elsewhere


def run_graph(
    folder: Path,
    stages: Sequence[str] = (),
    *,
    home: Path | None = None,
    recipe: str = "none",
    elsewhere: Elsewhere | None = None,
    fan_out: FanOut | None = None,
    asked: bool = False,
    push: bool = False,
    publishes: bool = False,
) -> State[None]:
    """Runs the graph of a DVC project inside the current flow run.

    Arguments:
        folder: The DVC project.
        stages: Stages to bring up to date with all upstream of them; all if empty.
        home: Where the history of experiments is kept, by default the project.
        recipe: Name of the params, for the history.
        elsewhere: What is asked of other machines.
        fan_out: How the work of a stage is shared out that can be; None for not at all.
        asked: Whether another machine asks for the stages, see `Context`.
        push: Whether to push the outputs of all stages.
        publishes: Whether to publish the student that stands for the run, see `flows.release`.

    Returns:
        Completed or Failed, with a summary.

    Raises:
        InputError: There is no DVC project in the folder, no stage of a name, or no remote where one is needed.
    """
    checkout = Checkout(folder)
    if push or asked or elsewhere:
        _want_remote(checkout)
    plan, named = checkout.plan(stages), checkout.named(stages) if asked else None
    history = _history(home or folder, folder, recipe)
    pushes = frozenset(plan.upstream) if push else named or frozenset()
    context = Context(
        checkout,
        plan.ancestors(),
        Processes(),
        history,
        Slots(workers()),
        {"NFM_RECIPE": recipe},
        elsewhere,
        asked=named,
        pushes=pushes,
        current=checkout.current & pushes,
        fan_out=fan_out,
        shared=plan.shared if fan_out else {},
    )
    sweep()
    try:
        states = _run(plan, context)
    except BaseException:  # cancelled, Ctrl-C or SIGTERM
        context.processes.stop()
        _close(history, "KILLED")
        raise
    version = release(folder, home or folder, states) if publishes else None
    if states.get("report") and states["report"].name not in ("Cached", None):
        publish(folder, home or folder, history, version)
    sweep()
    state = _summary(states)
    _close(history, "FINISHED" if state.is_completed() else "FAILED")
    return state


def _want_remote(checkout: Checkout) -> None:
    if not checkout.has_remote:
        raise InputError(
            f"{checkout.root} has no default DVC remote to carry files between machines; "
            "`dvc remote add --default store s3://bucket/nfm` and commit .dvc/config"
        )


def _run(plan: Plan, context: Context) -> dict[str, State[Any]]:
    """Submits every stage after those upstream of it, and waits for all."""
    futures: dict[str, PrefectFuture[Any]] = {}
    urgency = plan.urgency()
    for name, upstream in plan.upstream.items():
        futures[name] = run_stage.submit(  # pyright: ignore
            name, context, plan.limits[name], urgency[name], wait_for=[futures[up] for up in upstream]
        )
    wait(list(futures.values()))
    return {name: future.state for name, future in futures.items()}


def _summary(states: dict[str, State[Any]]) -> State[None]:
    """Returns one state for all: how many stages were cached, restored, run; what failed."""
    failed = {name: state for name, state in states.items() if not state.is_completed()}
    own = [state.message or name for name, state in failed.items() if not state.is_pending()]
    counts = Counter(state.name for state in states.values() if state.is_completed())
    words = {
        "Cached": "up to date",
        "Pulled": "pulled",
        "Restored": "restored",
        "Completed": "run",
        "Elsewhere": "run elsewhere",
    }
    done = [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
    summary = f"{len(states)} stages: {', '.join(done) or 'none done'}"
    if not failed:
        return Completed(message=summary)
    waiting = len(failed) - len(own)
    more = f", {waiting} not started for that" if waiting else ""
    return Failed(message=f"{'; '.join(own)} ({summary}, {len(own)} failed{more})")


def _history(home: Path, folder: Path, recipe: str) -> NoParent:
    run = getattr(get_run_context(), "flow_run", None)
    tags = {"recipe": recipe, "workspace": folder.name, **tags_of(run, folder)}
    return open_parent(home, run.name if run is not None else "flow", tags)


def _close(history: NoParent, status: str) -> None:
    try:
        history.close(status)
        if status != "KILLED":  # then Prefect is on its way out, too
            show_history(history)
    except InputError as error:
        get_run_logger().warning(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the flow from the command line.

    Returns:
        0 when all is up to date, 1 when a stage failed, 2 on bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--recipe", help="run a recipe instead of params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=SET)
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="default: report")
    given = parser.parse_args(arguments)
    # Prefect turns SIGTERM into an end of its own only where its worker has started the flow.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        overrides = overrides_of(given.overrides)
        params = params_of(Path.cwd(), given.recipe, overrides)  # before a server is started
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        return 2
    run: Any = pipeline
    state = run(given.recipe, overrides or None, given.stages, return_state=True)
    if state.is_completed():
        print(f"\n{state.message}")
        print(closing(place_of(Path.cwd(), params) if given.recipe or overrides else Path.cwd()))
        return 0
    print(f"nfm: {state.message}", file=sys.stderr)
    return 2 if state.name == REFUSED else 1


if __name__ == "__main__":
    sys.exit(main())
