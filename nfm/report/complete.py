"""The page with what no stage knows: what changed since the last champion, and the runs that it hangs on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nfm.artifacts import atomic_path
from nfm.report.changes import Changes, as_html
from nfm.report.html import CHAIN, CHAMPION, LINK, Section
from nfm.report.origin import RUN
from nfm.report.place import PAGE, SOURCE, mark


@dataclass(frozen=True)
class Link:
    """One part of the chain behind a page.

    Attributes:
        name: Such as "git commit".
        text: Such as its hash.
        address: Where it can be looked at; None where nobody knows.
        note: More on it.
    """

    name: str
    text: str
    address: str | None = None
    note: str = ""


def write_completed(folder: Path, changes: Changes | None, chain: Sequence[Link], runs: str | None) -> Path:
    """Writes the page that the stage `report` made, completed, beside its folder; returns where.

    The stage's own page is a function of its inputs and stays as DVC keeps it.

    Arguments:
        folder: The project's folder.
        changes: Since the last champion; None where that is not known.
        chain: From the commit to the model.
        runs: Start of the address of an MLflow run; None where no server has one.
    """
    page = completed((folder / SOURCE).read_text(encoding="utf-8"), changes, chain, runs)
    page = page.replace("<head>", f"<head>{mark(folder)}", 1)
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / PAGE


def completed(page: str, changes: Changes | None, chain: Sequence[Link], runs: str | None) -> str:
    """Returns a page with the section on the last champion and the chain in their places."""
    if changes is not None:
        section = Section("champion", "Champion", "What changed since the last champion", as_html(changes))
        page = page.replace(LINK, section.entry, 1).replace(CHAMPION, section.html, 1)
    lines = "".join(f"<dt>{escape(one.name)}</dt><dd>{_linked(one)}</dd>" for one in chain)
    page = page.replace(CHAIN, f'<dl class="chain">{lines}</dl>' if lines else "", 1)
    if runs is None:
        return page
    return re.sub(f"<code{RUN}>([0-9a-f]+)</code>", rf'<a href="{escape(runs)}\1">\g<0></a>', page)


def _linked(one: Link) -> str:
    text = f"<code>{escape(one.text)}</code>"
    if one.address:
        text = f'<a href="{escape(one.address)}">{text}</a>'
    return f"{text} {escape(one.note)}".rstrip()
