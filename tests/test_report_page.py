"""Pages in a browser: on a phone and on a desk, light and dark, without a mouse and read aloud."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfm.comparison.subject import from_summary
from nfm.comparison.table import as_html, rows_of
from nfm.figures.style import DARK, INK, MUTED, PAPER
from nfm.report.changes import Changes, Release
from nfm.report.complete import Link, write_completed
from tests.browser import Page, chromium_page, needs_chromium
from tests.test_report import made_up, page_of, plain_page_of

WIDTHS = {"phone": 390, "desk": 1280}
COST = {
    name: {"seconds": 90.0, "before_seconds": 60.0, "money": 0.002, "currency": "USD", "seconds_per_image": per_image}
    for name, per_image in {
        "independent": {"1": 1e-4, "31": 2e-3},
        "teacher": {"1": 1e-4, "2": 2e-4, "31": 2e-3},
    }.items()
}
COST["teacher"] |= {"pays_after": 20000.0, "pays_after_nfe": 2}
OLD = Release("version 1", "a" * 40, {"student.width": 64}, {"euler-1": 2.0}, {"fd": "fd"}, COST["independent"])
NEW = Release("version 2", "b" * 40, {"student.width": 96}, {"euler-1": 1.5}, {"fd": "fd"}, COST["teacher"])
CHAIN = [
    Link("git commit", "b" * 40, f"https://host.example/{'b' * 40}", "A long subject " * 8),
    Link("Prefect flow run", "f" * 36, "http://127.0.0.1:4200/runs/flow-run/f"),
    Link("student, DVC's hash", "d" * 32),
]

CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const paper = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const follows = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    return dark && follows ? [18, 18, 18] : [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), e = walker.currentNode.parentElement;
    if (!text || !e.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(paper(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return found;
})()"""
LAYOUT = """({
  scroll: document.documentElement.scrollWidth,
  right: Math.max(...[...document.querySelectorAll("body *")]
    .filter((e) => !e.closest(".scroll, [role=group], .skip")).map((e) => e.getBoundingClientRect().right)),
  small: Math.min(...[...document.querySelectorAll("td, th, p, figcaption, dd, li, .name")]
    .map((e) => parseFloat(getComputedStyle(e).fontSize))),
  images: [...document.images].map((i) => [i.alt, i.complete && i.naturalWidth > 0]),
  headings: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((e) => +e.tagName[1]),
  unnamed: [...document.querySelectorAll("[role=group], nav")].filter((e) => !e.getAttribute("aria-label")).length,
  language: document.documentElement.lang,
})"""
FOCUS = """(() => {
  const e = document.activeElement, box = e.getBoundingClientRect(), style = getComputedStyle(e);
  const order = [...document.querySelectorAll("a[href], summary, [tabindex='0']")];
  return { place: order.indexOf(e), count: order.length, outline: style.outlineStyle, width: style.outlineWidth,
    seen: box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth, name: e.innerText };
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of the kinds that there are, by name."""
    folder = tmp_path_factory.mktemp("pages")
    summary = made_up() | {"cost": {"student": COST}}
    page_of(summary, folder / "report", records={"teacher@0": {"key": "c" * 64, "run_id": "d" * 32, "seconds": 60.0}})
    changes = Changes("nfm-digits", NEW, OLD, [("b" * 40, "Subject " * 30)])
    completed = write_completed(folder, changes, CHAIN, "http://127.0.0.1:5000/#/runs/")
    eight = summary["fd"] | {f"another-coupling-{i}": summary["fd"]["teacher"] for i in range(4)}
    plain_page_of(summary | {"fd": eight}, folder / "eight")
    compared = folder / "compared.html"
    compared.write_text(as_html(rows_of([from_summary("a", summary | {"metric": "fd"})]), "fd"), encoding="utf-8")
    return {"completed": completed, "eight couplings": folder / "eight" / "index.html", "comparison": compared}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium_page(tmp_path_factory.mktemp("browser")) as page:
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        yield page


def shown(browser: Page, path: Path, width: int, scheme: str = "light") -> Page:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.size(width, 900)
    browser.open(path.as_uri())
    address = json.dumps(path.as_uri())
    loaded = "document.readyState === 'complete' && [...document.images].every((image) => image.complete)"
    browser.wait_for(f"location.href === {address} && {loaded}")
    return browser


def press(page: Page, key: str, code: int) -> None:
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


@needs_chromium
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("name", ["completed", "eight couplings", "comparison"])
def test_nothing_overflows_and_what_is_not_seen_can_be_read(
    pages: dict[str, Path], browser: Page, name: str, width: int
):
    found: dict[str, Any] = shown(browser, pages[name], width).ask(LAYOUT)
    assert found["scroll"] <= width
    assert found["right"] <= width
    assert found["small"] >= 11
    assert all(alt and loaded for alt, loaded in found["images"])
    assert found["headings"][0] == 1
    assert found["headings"].count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found["headings"], found["headings"][1:], strict=False))
    assert found["unnamed"] == 0
    assert found["language"] == "en"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["completed", "comparison"])
def test_all_text_stands_out_from_its_ground(pages: dict[str, Path], browser: Page, name: str, scheme: str):
    page = shown(browser, pages[name], 1280, scheme)
    page.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    found: list[tuple[float, str]] = page.ask(CONTRAST)
    assert len(found) > 20
    assert [(ratio, text) for ratio, text in found if ratio < 4.5] == []


@needs_chromium
def test_the_keyboard_reaches_all_in_order_and_sees_where_it_is(pages: dict[str, Path], browser: Page):
    page = shown(browser, pages["completed"], 390)
    press(page, "Tab", 9)
    first = page.ask(FOCUS)
    assert (first["place"], first["seen"], first["name"]) == (0, True, "Skip to the results")
    press(page, "Enter", 13)
    assert page.ask("document.activeElement.id") == "main"
    page = shown(browser, pages["completed"], 390)
    page.ask("document.querySelector('details').open = true")
    count = page.ask(FOCUS)["count"]
    for place in range(count):
        press(page, "Tab", 9)
        found = page.ask(FOCUS)
        assert found["place"] == place
        assert found["seen"]
        assert found["outline"] != "none"
        assert float(found["width"].removesuffix("px")) >= 1


@needs_chromium
def test_links_of_the_navigation_lead_to_its_headings_in_order(pages: dict[str, Path], browser: Page):
    page = shown(browser, pages["completed"], 1280)
    links = page.ask("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))")
    sections = page.ask("[...document.querySelectorAll('section')].map(e => e.id)")
    assert links == sections
    assert sections[:2] == ["distance", "champion"]
    assert sections.index("teacher") < sections.index("origin") < sections.index("cost")


def test_words_in_figures_stand_out_from_the_page():
    for ink in (INK, MUTED):
        assert contrast(ink, "#ffffff") >= 4.5
        assert contrast(DARK[ink], DARK[PAPER]) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG 2's ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)
