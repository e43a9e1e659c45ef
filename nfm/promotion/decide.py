"""Who is champion: the only code that moves that alias, with a record of every decision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from nfm.errors import InputError
from nfm.promotion.record import Action, Entry, append, only_one
from nfm.registry.client import CHALLENGER, CHAMPION, PREVIOUS

TAG = "promotion."  # what tags of a version are called that a decision left, followed by its time
TRIES = 3  # judgements against champions of whom each was another by the end


class Registry(Protocol):
    """Where versions and their aliases are kept, as `nfm.registry.client` has it."""

    def find(self, name: str, ref: str) -> Any: ...
    def versions(self, name: str) -> Any: ...
    def move(self, name: str, aliases: Mapping[str, int | None]) -> None: ...
    def tag(self, version: Any, tags: Mapping[str, str]) -> None: ...
    def attach(self, version: Any, path: str, content: Mapping[str, Any]) -> bool: ...


class Outcome(Protocol):
    """What a judge says."""

    @property
    def promoted(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def figures(self) -> dict[str, Any]: ...


Judge = Callable[[Any, Any], Outcome]  # of the challenger and the champion, who may be None


@dataclass(frozen=True)
class Desk:
    """Where decisions are taken and written down.

    Attributes:
        registry: Holds the versions.
        model: Name of the registered model.
        root: The project's folder, for the record and the lock.
        clock: Tells the time.
    """

    registry: Registry
    model: str
    root: Path
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def holder(self, alias: str) -> Any:
        """Returns the version that has an alias, None if none has."""
        return next((v for v in self.registry.versions(self.model) if alias in v.aliases), None)


def promote(desk: Desk, ref: str, judge: Judge) -> Entry:
    """Judges a version against the champion, and makes it champion if it is better.

    One decision at a time: where two come at once, the second waits for the lock and then judges against the champion
    that the first has made. On a server, where another machine may decide meanwhile, who is champion is looked up
    again after the judgement, and the challenger judged anew if that is another; between this look and the moving of
    the alias, some milliseconds, another machine could still come, which the look afterwards finds.

    Arguments:
        desk: Where.
        ref: The challenger, by number or alias.
        judge: Compares the two.

    Returns:
        The entry that was added to the record.

    Raises:
        InputError: There is no such version, or the judge finds that the two cannot be compared; then no alias of the
            champion has moved.
    """
    with only_one(desk.root):
        challenger = desk.registry.find(desk.model, ref)
        for _ in range(TRIES):
            champion = desk.holder(CHAMPION)
            if champion is not None and champion.number == challenger.number:
                return _already(desk, champion)
            verdict = judge(challenger, champion)
            if _number(desk.holder(CHAMPION)) != _number(champion):
                continue
            if not verdict.promoted:
                desk.registry.move(desk.model, {CHALLENGER: challenger.number})
                return _write(desk, "refused", challenger, champion, verdict.reason, verdict.figures)
            return _enthrone(desk, "promoted", challenger, champion, verdict.reason, verdict.figures)
    raise InputError(
        f"the champion of {desk.model} changed {TRIES} times while version {challenger.number} was judged; "
        "run the same command again"
    )


def force(desk: Desk, ref: str, reason: str) -> Entry:
    """Makes a version champion without a judgement, for a reason that is recorded."""
    with only_one(desk.root):
        challenger, champion = desk.registry.find(desk.model, ref), desk.holder(CHAMPION)
        if _number(champion) == challenger.number:
            raise InputError(f"version {challenger.number} of {desk.model} is the champion already; name another one")
        return _enthrone(desk, "forced", challenger, champion, reason)


def rollback(desk: Desk, reason: str) -> Entry:
    """Makes the previous champion champion again; there is no previous one then.

    Raises:
        InputError: There is no previous champion.
    """
    with only_one(desk.root):
        previous, champion = desk.holder(PREVIOUS), desk.holder(CHAMPION)
        if previous is None or _number(previous) == _number(champion):
            raise InputError(
                f"{desk.model} has no version with the alias {PREVIOUS!r} other than the champion to roll back to; "
                "choose one with `python -m nfm promote VERSION --force --reason TEXT`"
            )
        entry = _write(desk, "rolled back", previous, champion, reason)
        desk.registry.move(desk.model, {PREVIOUS: None, CHAMPION: previous.number})
        return entry


def _already(desk: Desk, champion: Any) -> Entry:
    """Returns an entry for a version that is champion already; the first one of a model is so by being published."""
    first = len(desk.registry.versions(desk.model)) == 1
    if first and not any(key.startswith(TAG) for key in champion.tags):
        reason = f"version {champion.number} is the first of {desk.model}, and so its champion"
        return _write(desk, "first", champion, None, reason)
    reason = f"version {champion.number} is the champion already"
    return Entry("unchanged", desk.model, champion.number, champion.number, reason, desk.clock())


def _enthrone(
    desk: Desk, action: Action, challenger: Any, champion: Any, reason: str, figures: Mapping[str, Any] | None = None
) -> Entry:
    """Writes a promotion down and then moves the aliases, so that nothing is served that no record explains."""
    entry = _write(desk, action, challenger, champion, reason, figures)
    desk.registry.move(desk.model, {PREVIOUS: _number(champion), CHAMPION: challenger.number, CHALLENGER: None})
    now = desk.holder(CHAMPION)
    if _number(now) != challenger.number:
        raise InputError(
            f"version {challenger.number} of {desk.model} was made champion, and another machine has made version "
            f"{_number(now)} champion at the same moment; see the tags of both and promote again"
        )
    return entry


def _write(
    desk: Desk, action: Action, version: Any, champion: Any, reason: str, figures: Mapping[str, Any] | None = None
) -> Entry:
    """Adds an entry to the version's tags, to its run as an artifact, and to the file."""
    entry = Entry(action, desk.model, version.number, _number(champion), reason, desk.clock(), figures or {})
    desk.registry.attach(version, f"promotions/{entry.stamp}.json", entry.content)
    desk.registry.tag(version, {f"{TAG}{entry.stamp}": f"{action}: {reason}"[:4000]})
    append(desk.root, entry)
    return entry


def _number(version: Any) -> int | None:
    return None if version is None else version.number
