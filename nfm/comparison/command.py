"""The command `compare`: from words to the table that it prints or writes."""

from collections.abc import Sequence
from pathlib import Path

from nfm.artifacts import atomic_path
from nfm.comparison.sources import subjects_of
from nfm.comparison.subject import require_one_yardstick
from nfm.comparison.table import FORMATS, rows_of
from nfm.config import nearest
from nfm.errors import InputError

ENDINGS = {".csv": "csv", ".md": "markdown", ".html": "html", ".txt": "text"}


def command(words: Sequence[str], root: Path, *, kind: str | None, output: Path | None) -> str:
    """Returns the comparison as text, after writing it to a file if one is named.

    Arguments:
        words: What to compare, see `subjects_of`.
        root: The project's folder.
        kind: A key of `FORMATS`; None for what the file's ending says, else text.
        output: Where to write; None for nowhere.

    Raises:
        InputError: A word or the format is unknown, or the figures have two yardsticks.
    """
    if kind is None:
        kind = ENDINGS.get(output.suffix, "text") if output else "text"
    if kind not in FORMATS:
        raise InputError(f"--format is {kind!r}, expected one of {', '.join(FORMATS)}{nearest(kind, FORMATS)}")
    subjects = subjects_of(words, root)
    require_one_yardstick(subjects)
    text = FORMATS[kind](rows_of(subjects), subjects[0].metric)
    if output is None:
        return text.rstrip("\n")
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return f"{output} has {len(subjects)} runs or revisions compared"
