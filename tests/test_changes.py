"""What changed since the last champion: told where it is known, and nothing compared that does not compare."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client

import flows.release
from flows.release import published
from flows.report import commit_address, publish
from nfm.registry.client import CHALLENGER, CHAMPION, PREVIOUS, open_registry
from nfm.registry.facts import TAG, facts_of, keep, last_champion, release_of
from nfm.report.changes import Changes, Release, as_html, as_markdown
from nfm.report.complete import Link, completed, write_completed
from nfm.report.html import CHAIN, LINK
from nfm.report.html import CHAMPION as PLACE
from nfm.report.place import newest_page
from nfm.tracking import open_parent
from tests.students import save_random_student

YARDSTICK = {"fd": "fd_digits_1k", "features": "64 of a classifier"}
PARAMS = {
    "data": {"kind": "digits"},
    "couplings": ["teacher"],
    "seeds": [0],
    "coupling": {"teacher": {"kind": "teacher", "draws": 8}},
    "student": {"width": 64, "train": {"steps": 1800}},
    "cost": {"cpu_hour": 0.36, "gpu_hour": {}, "currency": "EUR"},
    "run": {"fan_out": 2},
}
OLD = Release(
    "version 1",
    "a" * 40,
    {"student.width": 64, "seeds": [0], "teacher.noise_std": 0.05},
    {"euler-1": 2.0, "heun-31": 1.0, "euler-2": 1.5},
    YARDSTICK,
    {"seconds": 90.0, "before_seconds": 60.0},
)
NEW = Release(
    "version 2",
    "b" * 40,
    {"student.width": 96, "seeds": [0], "student.depth": 2},
    {"euler-1": 1.5, "heun-31": 1.1},
    YARDSTICK,
    {"seconds": 150.0, "before_seconds": 60.0, "money": 0.015, "currency": "EUR"},
)


def test_what_differs_is_told_and_what_does_not_is_not():
    changes = Changes("nfm-digits", NEW, OLD)
    assert changes.params == [
        ("student.depth", "–", "2"),
        ("student.width", "64", "96"),
        ("teacher.noise_std", "0.05", "–"),
    ]
    assert changes.distances == [("euler-1", 2.0, 1.5), ("heun-31", 1.0, 1.1)]
    assert changes.costs == [
        ("teacher and coupling", "60 s", "60 s"),
        ("student", "30 s", "90 s"),
        ("together", "90 s", "2 min"),
        ("money", "–", "0.015 EUR"),
    ]
    assert changes.sentence == (
        "Version 2 of nfm-digits against version 1, the last champion: 3 settings changed; "
        "FD from 2.00 to 1.50 at NFE 1, from 1.00 to 1.10 at NFE 31."
    )
    assert changes.content["fd"]["euler-1"] == {"old": 2.0, "new": 1.5, "difference": -0.5}
    page, text = as_html(changes), as_markdown(changes)
    for words in ("−0.50 (−25 %)", "+0.10 (+10 %)", "teacher.noise_std", "2 min"):
        assert words in page
        assert words in text


def test_distances_of_two_yardsticks_are_not_put_side_by_side():
    other = Release("version 2", "b" * 40, NEW.params, NEW.fd, YARDSTICK | {"features": "64 of another"}, NEW.cost)
    changes = Changes("nfm-digits", other, OLD)
    assert changes.distances == []
    assert "do not compare" in changes.sentence
    page = as_html(changes)
    assert "64 of another" in page
    assert "2.00" not in page


def test_a_first_champion_has_none_before_it_and_an_old_one_may_have_kept_nothing():
    first = Changes("nfm-digits", NEW, None)
    assert as_html(first) == "<p>Version 2 of nfm-digits is its first champion: there is none before it.</p>"
    assert as_markdown(first) == first.sentence
    changes = Changes("nfm-digits", NEW, Release("version 1", "a" * 40))
    assert "before versions kept their settings" in changes.sentence
    assert changes.params == []


def test_commits_are_listed_with_their_range():
    same = Release("version 1", "b" * 40, OLD.params, OLD.fd, YARDSTICK)
    assert "Both were trained by the code of commit bbbbbbbbbbbb." in as_html(Changes("m", NEW, same, []))
    some = as_html(Changes("m", NEW, OLD, [("b" * 40, "Use <b> & more"), ("c" * 40, "Another")]))
    assert "Commits aaaaaaaaaaaa..bbbbbbbbbbbb: 2" in some
    assert "Use &lt;b&gt; &amp; more" in some
    assert "Commits" not in as_html(Changes("m", NEW, OLD, None))


# The page


def test_a_page_is_completed_in_its_places_and_links_what_has_an_address(tmp_path: Path):
    run = "d" * 32
    page = f'<head></head>{LINK}{PLACE}{CHAIN}<code class="run">{run}</code>'
    chain = [Link("commit", "abc", "https://host.example/abc", "A <subject>"), Link("data", "md5")]
    found = completed(page, Changes("m", NEW, None), chain, "http://host.example/#/runs/")
    assert '<a href="#champion">' in found
    assert '<section id="champion">' in found
    assert '<dd><a href="https://host.example/abc"><code>abc</code></a> A &lt;subject&gt;</dd>' in found
    assert "<dd><code>md5</code></dd>" in found
    assert f'<a href="http://host.example/#/runs/{run}"><code class="run">{run}</code></a>' in found
    plain = completed(page, None, [], None)
    assert plain == f'<head></head>{LINK}{PLACE}<code class="run">{run}</code>'


def test_a_completed_page_counts_until_the_report_is_another(tmp_path: Path):
    source = tmp_path / "report" / "index.html"
    source.parent.mkdir()
    source.write_text("<head></head>first")
    assert newest_page(tmp_path) == source
    page = write_completed(tmp_path, None, [], None)
    assert newest_page(tmp_path) == page
    assert source.read_text() == "<head></head>first"  # which is DVC's
    source.write_text("<head></head>second")
    assert newest_page(tmp_path) == source


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://user:secret@host.example/me/nfm.git", "https://host.example/me/nfm/commit/c0ffee"),
        ("git@host.example:me/nfm.git", "https://host.example/me/nfm/commit/c0ffee"),
        ("ssh://git@host.example:2222/me/nfm", "https://host.example/me/nfm/commit/c0ffee"),
        ("http://host.example:3000/me/nfm.git", "http://host.example:3000/me/nfm/commit/c0ffee"),
        ("/srv/nfm.git", None),
        ("file:///srv/nfm.git", None),
    ],
)
def test_a_commit_has_an_address_where_a_host_shows_it_and_no_credentials(origin: str, address: str | None):
    assert commit_address(origin, "c0ffee") == address


# The registry


@pytest.fixture
def project(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a student, its measures, and what its stages have left."""
    monkeypatch.setenv("NFM_TRACKER", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copyfile(database, tmp_path / "mlflow.db")
    write(tmp_path / "results" / "summary.json", {"fd": {}})
    report = tmp_path / "report" / "index.html"
    report.parent.mkdir()
    report.write_text(f"<head></head>{LINK}{PLACE}{CHAIN}")
    for stage, seconds in {"teacher@0": 50.0, "couple-teacher@0": 10.0, "student@teacher-0": 30.0}.items():
        write(tmp_path / "artifacts" / "runs" / f"{stage}.json", {"seconds": seconds, "device": "cpu", "run_id": None})
    return tmp_path


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def trained(project: Path, seed: int, fd: float, **student: int) -> dict:
    """Puts a student and its measures in their places; returns the params."""
    params = {**PARAMS, "student": PARAMS["student"] | student}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    save_random_student(project / "artifacts" / "student" / "teacher-0" / "student.safetensors", seed=seed)
    measures = {"yardstick": YARDSTICK, "fd_digits_1k": {"euler-1": fd}, "seconds_per_image": {"euler-1": 1e-4}}
    write(project / "metrics" / "evaluate" / "teacher-0.json", measures)
    return params


def test_a_version_keeps_its_settings_distances_and_cost_for_those_that_come_after(project: Path):
    version = published(project, project, trained(project, 0, 2.0), "teacher-0")
    found = release_of(open_registry(project).find("nfm-digits", "champion"))
    assert found.name == "version 1"
    assert found.params["student.train.steps"] == 1800
    assert "run.fan_out" not in found.params  # where stages run is no matter of the student
    assert found.fd == {"euler-1": 2.0}
    assert found.yardstick == YARDSTICK
    assert found.cost["seconds"] == pytest.approx(90.0)
    assert found.cost["money"] == pytest.approx(90 / 3600 * 0.36)
    keep(open_registry(project), open_registry(project).find("nfm-digits", "1"), {"fd": {"euler-1": 9.0}})
    assert release_of(open_registry(project).find("nfm-digits", "1")).fd == {"euler-1": 2.0}
    assert version.number == 1


def test_the_last_champion_is_the_one_before_a_version_that_is_champion(project: Path):
    registry = open_registry(project)
    first = published(project, project, trained(project, 0, 2.0), "teacher-0")
    assert last_champion(registry, "nfm-digits", first) is None
    second = published(project, project, trained(project, 1, 1.5), "teacher-0")
    assert last_champion(registry, "nfm-digits", second) == registry.find("nfm-digits", "1")
    registry.move("nfm-digits", {CHAMPION: 2, PREVIOUS: 1, CHALLENGER: None})
    second = registry.find("nfm-digits", "2")
    found = last_champion(registry, "nfm-digits", second)
    assert found is not None
    assert found.number == 1
    tried = last_champion(registry, "nfm-digits", None)  # of a run that publishes nothing
    assert tried is not None
    assert tried.number == 2


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_run_completes_its_report_and_shows_it_in_prefect_and_mlflow(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flows.release, "get_run_logger", lambda: logging.getLogger("release"))
    pages, histories = [], []

    @flow
    def show(publishes: bool = True):
        history = open_parent(project, "quick-fox", {})
        params = yaml.safe_load((project / "params.yaml").read_text())
        version = published(project, project, params, "teacher-0") if publishes else None
        publish(project, project, history, version)
        history.close("FINISHED")
        histories.append(history)
        pages.append((project / "report.html").read_text())

    trained(project, 0, 2.0)
    show()
    trained(project, 1, 1.5, width=96)
    show()
    trained(project, 2, 3.0, width=32)
    show(publishes=False)
    assert "Version 1 of nfm-digits is its first champion" in pages[0]
    assert (
        "Version 2 of nfm-digits against version 1, the last champion: 1 setting changed; FD from 2.00 to 1.50"
        in (pages[1])
    )
    assert "This run&#x27;s student of nfm-digits against version 1" in pages[2]
    assert "from 2.00 to 3.00" in pages[2]
    with get_client(sync_client=True) as client:
        shown = [f"{artifact.key}: {artifact.data}" for artifact in client.read_artifacts()]
    for history in histories:
        (link,) = [text for text in shown if history.run_id in text and text.startswith("report: ")]
        assert (project / "report.html").as_uri() in link
    assert any(text.startswith("since-champion: ") and "from 2.00 to 3.00" in text for text in shown)
    registry = open_registry(project)
    kept = [path.path for path in registry._client.list_artifacts(histories[1].run_id)]
    assert kept == ["report.html"]
    assert TAG in registry.find("nfm-digits", "2").tags
    assert registry.find("nfm-digits", "2").tags["report"] == f"runs:/{histories[1].run_id}/report.html"
    assert facts_of(project, PARAMS, "teacher-0")["fd"] == {"euler-1": 3.0}
    assert (project / "report" / "index.html").read_text() == f"<head></head>{LINK}{PLACE}{CHAIN}"
