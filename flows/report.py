"""The report where people look for it: completed by what the registry knows, in Prefect's UI, as MLflow's artifact."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import get_run_context
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from flows.neighbours import tags_of
from flows.release import chosen
from flows.workspace import git
from nfm.config import read_mapping
from nfm.errors import InputError
from nfm.lineage import locked
from nfm.report.place import newest_page
from nfm.tracker import record_of
from nfm.tracking import NoParent, interface_of, is_mlflow, tracking_uri

if TYPE_CHECKING:
    from nfm.registry.client import Version
    from nfm.report.changes import Changes
    from nfm.report.complete import Link


def publish(folder: Path, home: Path, history: NoParent, version: "Version | None") -> None:
    """Shows FD by coupling and NFE, the FD curves, the report and what changed since the champion in Prefect's UI.

    The report that the stage made is completed beside its folder, and kept by MLflow's run of the flow run.

    Arguments:
        folder: Where the report stage has left results/summary.json and report/.
        home: The folder whose registry it is, where MLFLOW_TRACKING_URI is not set.
        history: MLflow's run of the flow run.
        version: What the run has published, if anything.
    """
    try:
        summary = json.loads((folder / "results" / "summary.json").read_text())
    except (OSError, ValueError):
        return
    fd = summary.get("fd") or {}
    rows = [
        {"coupling": name, **{nfe: round(sum(v) / len(v), 2) for nfe, v in by_nfe.items() if v}}
        for name, by_nfe in fd.items()
    ]
    if rows:
        title = f"Fréchet distance by NFE, {summary.get('metric') or summary.get('dataset', '')}"
        create_table_artifact(key="fd", table=rows, description=title)
    curves = folder / "report" / "fd.png"
    if curves.is_file():
        # In the URL itself: the server need not reach this machine's files.
        url = f"data:image/png;base64,{base64.b64encode(curves.read_bytes()).decode()}"
        create_image_artifact(image_url=url, key="fd-curves", description="Fréchet distance against NFE")
    page = _complete(folder, home, history, version) if (folder / "report" / "index.html").is_file() else None
    create_markdown_artifact(key="report", markdown=_report_markdown(folder, page, history))


def closing(folder: Path) -> str:
    """Returns what to read next: the headline, where the report is, how to open the interfaces."""
    headline = folder / "report" / "headline.txt"
    if not (headline.is_file() and (folder / "report" / "index.html").is_file()):
        return "There is no report yet; the stage `report` makes it."
    served, prefect = interface_of(tracking_uri(folder)), PREFECT_UI_URL.value() if PREFECT_API_URL.value() else None
    return (
        f"\n{headline.read_text()}\n"
        f"Report:  {newest_page(folder).resolve().as_uri()}\n"
        f"MLflow:  {served or '`make ui`, then http://127.0.0.1:5000/#/experiments/1/runs'}\n"
        f"Prefect: {prefect or '`make ui`, then http://127.0.0.1:4200'}, flow nfm"
    )


def _complete(folder: Path, home: Path, history: NoParent, version: "Version | None") -> Path:
    """Writes the completed report and shows it; what keeps a part of it from that is a warning and fails no run."""
    from nfm.report.changes import as_markdown
    from nfm.report.complete import write_completed

    changes, served = None, interface_of(tracking_uri(home))
    with _warning("the report lacks what changed since the last champion"):
        changes = _changes(folder, home, version)
    chain = _chain(folder, history, version, served)
    page = write_completed(folder, changes, chain, f"{served}/#/runs/" if served else None)
    with _warning("MLflow did not keep the report"):
        history.artifact(page)
    if changes is not None:
        text = as_markdown(changes)
        create_markdown_artifact(
            key="since-champion", markdown=text, description="What changed since the last champion"
        )
    with _warning("MLflow's version does not name its report"):
        _attach(home, version, changes, history)
    return page


@contextmanager
def _warning(start: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        get_run_logger().warning(f"{start}: {error}")


def _changes(folder: Path, home: Path, version: "Version | None") -> "Changes | None":
    """Returns the student that stands for the run beside the last champion.

    None where nothing is published: of latents, or where MLflow is not the tracker; and where a run that publishes
    nothing finds no champion.
    """
    from nfm.registry.client import model_name, open_registry
    from nfm.registry.facts import facts_of, last_champion, release_of
    from nfm.registry.provenance import tags_of as origin_of
    from nfm.report.changes import Changes, Release

    params = read_mapping(folder / "params.yaml")
    if not is_mlflow() or params["data"]["kind"] == "latents":
        return None
    item, model, registry = chosen(params), model_name(params["data"]["kind"]), open_registry(home)
    champion = last_champion(registry, model, version)
    if champion is None and version is None:
        return None
    name = "this run's student" if version is None else f"version {version.number}"
    commit = origin_of(registry, folder, item).get("git.commit")
    new = Release(name, commit, **facts_of(folder, params, item))
    if champion is None:
        return Changes(model, new, None)
    old = release_of(champion)
    return Changes(model, new, old, _commits(home, old.commit, commit))


def _commits(root: Path, old: str | None, new: str | None) -> list[tuple[str, str]] | None:
    """Returns hash and subject of the commits between two, the newest first; None where git does not know both."""
    if not old or not new:
        return None
    try:
        lines = git(root, "log", "--format=%H %s", "--end-of-options", f"{old}..{new}").splitlines()
    except InputError:
        return None
    return [(commit, subject) for commit, _, subject in (line.partition(" ") for line in lines)]


def _chain(folder: Path, history: NoParent, version: "Version | None", served: str | None) -> "list[Link]":
    """Returns what the report hangs on: commit, DVC's hashes, flow run, MLflow's run, published version."""
    from nfm.report.complete import Link

    flow_run = getattr(get_run_context(), "flow_run", None)
    tags = tags_of(flow_run, folder)
    chain, commit = [], tags["git.commit"]
    if commit != "none":
        subject = git(folder, "show", "--no-patch", "--format=%s", commit).strip()
        chain.append(Link("git commit", commit, _commit_address(folder, commit), subject))
    params = read_mapping(folder / "params.yaml")
    hashes = locked(folder)
    for name, path in (
        ("data, DVC's hash", "artifacts/data/train"),
        ("student, DVC's hash", f"artifacts/student/{chosen(params)}/student.safetensors"),
    ):
        if path in hashes:
            chain.append(Link(name, hashes[path], None, path))
    if flow_run is not None:
        chain.append(Link("Prefect flow run", str(flow_run.id), tags.get("prefect.flow_run_url"), flow_run.name))
    if history.run_id is not None:
        chain.append(Link("MLflow run", history.run_id, history.link))
    if version is not None:
        address = f"{served}/#/models/{version.name}/versions/{version.number}" if served else None
        chain.append(Link("model", f"{version.name} version {version.number}", address, ", ".join(version.aliases)))
    return chain


def _commit_address(folder: Path, commit: str) -> str | None:
    """Returns where the commit can be looked at: on the host of origin, if it has been pushed there."""
    try:
        if not git(folder, "branch", "--remotes", "--contains", commit).strip():
            return None
        origin = git(folder, "remote", "get-url", "origin").strip()
    except InputError:
        return None
    return commit_address(origin, commit)


def commit_address(origin: str, commit: str) -> str | None:
    """Returns a commit's address on a host that shows commits below /commit/; None where origin is none.

    Arguments:
        origin: As git has it: https://, with or without credentials, which are left out; ssh://; or user@host:path.
        commit: Its hash.
    """
    scheme, found, rest = origin.partition("://")
    if not found:
        host, colon, path = origin.partition(":")
        if not colon or "@" not in host:
            return None  # a folder
        scheme, rest = "ssh", f"{host}/{path}"
    if scheme not in ("https", "http", "ssh"):
        return None
    host, _, path = rest.rpartition("@")[2].partition("/")
    if scheme == "ssh":
        scheme, host = "https", host.partition(":")[0]  # its port is another service's
    return f"{scheme}://{host}/{path.removesuffix('/').removesuffix('.git')}/commit/{commit}"


def _attach(home: Path, version: "Version | None", changes: "Changes | None", history: NoParent) -> None:
    """Names the report in a version's tags, and keeps the changes with the run that made the version."""
    from nfm.registry.client import open_registry

    if version is None:
        return
    registry = open_registry(home)
    registry.tag(version, {"report": f"runs:/{history.run_id}/report.html"})
    if changes is not None and changes.old is not None:
        registry.attach(version, "since-champion.json", changes.content)


def _report_markdown(folder: Path, page: Path | None, history: NoParent) -> str:
    report = (page or folder / "report" / "index.html").resolve()
    lines = [f"Report: [{report}]({report.as_uri()})"]
    if page and history.run_id:
        name = f"[{history.run_id}]({history.link})" if history.link else f"`{history.run_id}`"
        lines.append(f"The same page is the artifact `report.html` of MLflow's run of this flow run: {name}")
    run_id: Any = record_of(folder, "report").get("run_id")
    if run_id:
        lines.append(f"MLflow run of the report stage: {run_id}")
    return "\n\n".join(lines)
