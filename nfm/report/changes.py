"""What a student is and cost beside the champion before it: settings, distance by NFE, cost, commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from nfm.report.tables import duration, table

ABSENT = "–"
SHOWN = 20  # commits that are listed


@dataclass(frozen=True)
class Release:
    """What is known of a student that stands for a run.

    Attributes:
        name: Such as "version 3".
        commit: Of the code that trained it.
        params: By dotted key, as far as they decide what it is.
        fd: By solver and NFE ("euler-5").
        yardstick: What that was measured with.
        cost: As `nfm.cost.of_students` has it, of this student alone, and "seconds_per_image" by solver and NFE.
    """

    name: str
    commit: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    fd: Mapping[str, float] = field(default_factory=dict)
    yardstick: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """A student beside the last champion.

    Attributes:
        model: Name of the registered model.
        new: The student.
        old: The champion before it; None if there was none.
        commits: Hash and subject of those between the two, the newest first; None where git does not know both.
    """

    model: str
    new: Release
    old: Release | None
    commits: Sequence[tuple[str, str]] | None = None

    @property
    def sentence(self) -> str:
        """The changes in one sentence."""
        if self.old is None:
            return f"{_upper(self.new.name)} of {self.model} is its first champion: there is none before it."
        start = f"{_upper(self.new.name)} of {self.model} against {self.old.name}, the last champion"
        if not self.old.params:
            return f"{start}, which was published before versions kept their settings and figures."
        count = len(self.params)
        settings = f"{count} setting{'s' * (count != 1)} changed" if count else "no setting changed"
        if self.other_yardstick:
            return f"{start}: {settings}; their distances were measured differently and do not compare."
        parts = [f"{a:.2f} to {b:.2f} at NFE {_nfe(key)}" for key, a, b in self.distances[:1] + self.distances[1:][-1:]]
        return f"{start}: {settings}" + (f"; FD from {', from '.join(parts)}." if parts else ".")

    @property
    def params(self) -> list[tuple[str, str, str]]:
        """The settings that differ: key, before, now."""
        old = self.old.params if self.old else {}
        keys = sorted({*old, *self.new.params})
        pairs = [(key, _value(old, key), _value(self.new.params, key)) for key in keys]
        return [one for one in pairs if one[1] != one[2]] if old else []

    @property
    def other_yardstick(self) -> list[tuple[str, str, str]]:
        """What the distances were measured with that differs: word, before, now."""
        old, new = self.old.yardstick if self.old else {}, self.new.yardstick
        words = sorted({*old, *new}) if old and new else []
        return [(word, _value(old, word), _value(new, word)) for word in words if old.get(word) != new.get(word)]

    @property
    def distances(self) -> list[tuple[str, float, float]]:
        """Setting, distance before and now, where both were measured with one yardstick."""
        if self.old is None or self.other_yardstick:
            return []
        shared = [key for key in self.new.fd if key in self.old.fd]
        return [(key, self.old.fd[key], self.new.fd[key]) for key in sorted(shared, key=lambda key: int(_nfe(key)))]

    @property
    def costs(self) -> list[tuple[str, str, str]]:
        """What was spent, before and now, of what is known of one of them."""
        old, new = self.old.cost if self.old else {}, self.new.cost
        rows = [(name, tell(old), tell(new)) for name, tell in COSTS.items()]
        return [row for row in rows if row[1:] != (ABSENT, ABSENT)]

    @property
    def content(self) -> dict[str, Any]:
        """The changes as JSON holds them."""
        return {
            "model": self.model,
            "old": self.old.name if self.old else None,
            "new": self.new.name,
            "sentence": self.sentence,
            "params": {key: {"old": old, "new": new} for key, old, new in self.params},
            "yardstick": {key: {"old": old, "new": new} for key, old, new in self.other_yardstick},
            "fd": {key: {"old": old, "new": new, "difference": new - old} for key, old, new in self.distances},
            "cost": {key: {"old": old, "new": new} for key, old, new in self.costs},
            "commits": {"old": self.old.commit if self.old else None, "new": self.new.commit},
        }


def as_html(changes: Changes) -> str:
    """Returns what the section of a page holds."""
    text = f"<p>{escape(changes.sentence)}</p>"
    if changes.old is None:
        return text
    first, *others = [
        table([escape(word) for word in head], _rows(rows), escape(caption), kind="plain changes")
        for caption, head, rows in _tables(changes)
    ] or [""]
    return f'{text}<div class="pair"><div>{first}</div><div>{"".join(others)}</div></div>{_commits(changes)}'


def as_markdown(changes: Changes) -> str:
    """Returns the same for Prefect's UI."""
    parts = [changes.sentence]
    for caption, head, rows in _tables(changes) if changes.old else []:
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        parts.append(f"{caption}\n\n{body}")
    if changes.old and changes.commits is not None:
        listed = "\n".join(f"- `{commit[:12]}` {subject}" for commit, subject in changes.commits[:SHOWN])
        parts.append(f"{_range(changes)}\n\n{listed}".rstrip())
    return "\n\n".join(parts)


def _tables(changes: Changes) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns caption, head and rows of each table that has rows."""
    old, new = changes.old.name if changes.old else "", changes.new.name
    distances = [
        [_setting(key), f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f} ({100 * (b / a - 1):+.0f} %)".replace("-", "−")]
        for key, a, b in changes.distances
    ]
    one = "One student each, so no spread: `nfm promote` tells whether a difference is more than noise."
    found = [
        (f"FD by NFE; low is good. {one}".replace("`", ""), ["NFE", old, new, "difference"], distances),
        ("Settings that differ.", ["setting", old, new], [list(row) for row in changes.params]),
        ("Measured differently, so distances do not compare.", ["", old, new], _lists(changes.other_yardstick)),
        ("What one student cost, its whole teacher included.", ["", old, new], _lists(changes.costs)),
    ]
    return [part for part in found if part[2]]


def _lists(rows: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    return [list(row) for row in rows]


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )


def _commits(changes: Changes) -> str:
    if changes.commits is None:
        return ""
    listed = "".join(
        f"<li><code>{escape(commit[:12])}</code> {escape(subject)}</li>" for commit, subject in changes.commits[:SHOWN]
    )
    return f'<p class="note">{escape(_range(changes))}</p>' + (f'<ul class="commits">{listed}</ul>' if listed else "")


def _range(changes: Changes) -> str:
    old, new = (str(one.commit)[:12] if one else "" for one in (changes.old, changes.new))
    count = len(changes.commits or ())
    if not count:
        return f"Both were trained by the code of commit {new}." if old == new else f"Commits {old}..{new}: none."
    more = f", the last {SHOWN} of which are" if count > SHOWN else ""
    return f"Commits {old}..{new}: {count}{more}"


def _value(mapping: Mapping[str, Any], key: str) -> str:
    return str(mapping[key]) if key in mapping else ABSENT


def _upper(name: str) -> str:
    return name[:1].upper() + name[1:]


def _nfe(key: str) -> str:
    return key.rpartition("-")[2]


def _setting(key: str) -> str:
    solver, _, nfe = key.rpartition("-")
    return f"{nfe}, {solver.capitalize()}"


def _time(cost: Mapping[str, Any], key: str) -> str:
    return duration(cost[key]) if key in cost else ABSENT


def _student(cost: Mapping[str, Any]) -> str:
    return duration(cost["seconds"] - cost["before_seconds"]) if "seconds" in cost else ABSENT


def _sample(cost: Mapping[str, Any]) -> str:
    times = cost.get("seconds_per_image") or {}
    fewest = min(times, key=lambda key: int(_nfe(key)), default="")
    return f"{1000 * times[fewest]:.2f} ms (NFE {_nfe(fewest)})" if fewest else ABSENT


COSTS = {  # name -> what to tell of a cost
    "teacher and coupling": lambda cost: _time(cost, "before_seconds"),
    "student": _student,
    "together": lambda cost: _time(cost, "seconds"),
    "money": lambda cost: f"{cost['money']:.2g} {cost.get('currency', '')}".strip() if "money" in cost else ABSENT,
    "energy": lambda cost: f"{cost['joules'] / 1000:.1f} kJ" if "joules" in cost else ABSENT,
    "a sample": _sample,
}
