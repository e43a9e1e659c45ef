"""The flow over single stages: by hand, or for a flow run on another machine."""

from pathlib import Path

from prefect import State, flow
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.checkout import Checkout
from flows.elsewhere import FLOW
from flows.fan_out import FanOut
from flows.identity import Identity, check_deployed, refuse_another
from flows.parameters import Overrides, Recipe, Stages
from flows.pipeline import REFUSED, THREADS, elsewhere_of, run_graph
from flows.workspace import params_of, workspace
from nfm.errors import InputError


@flow(name=FLOW, task_runner=ThreadPoolTaskRunner(max_workers=THREADS))  # pyright: ignore
def single_stages(
    stages: Stages,
    recipe: Recipe | None = None,
    overrides: Overrides | None = None,
    asker: Identity | None = None,
) -> State[None]:
    """Brings single stages of dvc.yaml up to date, with what they need.

    Arguments:
        stages: Stages to bring up to date with all upstream of them, such as ["student"], which
            stands for every student, or ["student@teacher-0"].
        recipe: Name of a recipe to run instead of params.yaml, in a workspace of its own.
        overrides: Params by dotted key, such as {"student.train.steps": 100}, likewise.
        asker: Left empty by hand. A flow run on another machine gives its commit and lock here:
            then what is upstream is restored from the DVC remote and never run, and the outputs
            are pushed.
    """
    root = Path.cwd()
    try:
        check_deployed(root, code=asker is None)
        if asker is not None:
            refuse_another(asker, Checkout(root))
        params = params_of(root, recipe, overrides)
        folder = workspace(root, params) if recipe or overrides else root
        return run_graph(
            folder,
            stages,
            home=root,
            recipe=recipe or "params.yaml",
            elsewhere=elsewhere_of(folder, params, recipe),
            fan_out=FanOut.of(params),
            asked=asker is not None,
        )
    except InputError as error:
        return Failed(name=REFUSED, message=str(error))
