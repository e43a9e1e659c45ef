"""What Prefect and MLflow tell of each other: each one's runs name the other's, with an address where there is one."""

from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.utilities.urls import url_for

from flows.workspace import git
from nfm.errors import InputError
from nfm.tracking import NoParent


def tags_of(flow_run: Any, folder: Path) -> dict[str, str]:
    """Returns what MLflow's run of a flow run says of git and of Prefect.

    Arguments:
        flow_run: Prefect's; None outside of one.
        folder: The DVC project.
    """
    tags = {}
    try:
        tags["git.commit"] = git(folder, "rev-parse", "HEAD").strip()
    except InputError:
        tags["git.commit"] = "none"
    if flow_run is not None:
        tags["prefect.flow_run_id"] = str(flow_run.id)
        if url := url_for("flow-run", flow_run.id):
            tags["prefect.flow_run_url"] = url
    return tags


def show_history(history: NoParent) -> None:
    """Shows the id of MLflow's run of this flow run in Prefect's UI."""
    if history.run_id is None:
        return
    name = f"[{history.run_id}]({history.link})" if history.link else f"`{history.run_id}`"
    text = (
        f"MLflow run of this flow run: {name}\n\nIts tags `made_by.STAGE` name the run that made each stage's outputs; "
        f"`python -m nfm trace {history.run_id}` prints the whole chain."
    )
    create_markdown_artifact(key="mlflow", markdown=text, description="MLflow run of this flow run")
