"""A round: the one command, given again until a run of it has finished, with kills at random moments."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle

from benchmarks.chaos.judge import (
    Verdict,
    compare,
    executions,
    fingerprints,
    redone,
    repeats,
    sent,
    unrecorded,
    unsent,
)
from benchmarks.chaos.project import CHECKPOINT, REPORT, Project
from benchmarks.chaos.scene import KINDS, TWICE, Scene, kill, look, seconds_to_end, victims
from benchmarks.chaos.server import ENDED, Server
from infra.bucket import make_client

LIMIT = 900.0  # seconds of a round; one that takes longer needs a hand
GONE = 15.0  # seconds without a process after which one gives the command again
CHANCE = 0.9  # that a stage is hit, each time that it starts and after each hit that it has outlived
EARLY = 0.5  # that a flow run is hit before its first stage, or between two
AFTER = 3.0  # seconds past a stage's usual end in which it may be hit: DVC and the push are at work then


@dataclass(frozen=True)
class Kill:
    """One kill: what was killed, when (seconds since 1970), what was under way, and how long a SIGTERM took."""

    kind: str
    moment: float
    under_way: tuple[str, ...]
    seconds: float | None = None


class Deck:
    """The kills that are left: of each kind its share.

    Arguments:
        kills: How many there are in all.
        generator: Draws order, moments and whom to hit.
        shuffled: Whether the order is random, and not that of KINDS.
    """

    def __init__(self, kills: int, generator: random.Random, shuffled: bool = True) -> None:
        self.generator = generator
        self._left = [kind for kind, _ in zip(cycle((*KINDS, *TWICE)), range(kills), strict=False)]
        if shuffled:
            generator.shuffle(self._left)

    def __len__(self) -> int:
        return len(self._left)

    def draw(self, scene: Scene, project: Project, stage: int | None) -> tuple[str, list[int]] | None:
        """Takes the next kind that has somebody to kill; None if none has."""
        for place, kind in enumerate(self._left):
            if pids := victims(kind, scene, project, stage):
                del self._left[place]
                return kind, pids
        return None


@dataclass
class Round:
    """What happened in a round.

    Attributes:
        kills: In their order.
        commands: How often the command was given.
        hand_needed: What kept it from finishing, empty if nothing did.
        spans: Seconds that each stage took, as seen from outside.
        seconds: Of the whole round.
    """

    kills: list[Kill] = field(default_factory=list)
    commands: int = 0
    hand_needed: list[str] = field(default_factory=list)
    spans: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Player:
    """Plays a round.

    Arguments:
        project: The clone with its stack.
        server: Its Prefect server.
        deck: The kills that are left; none for a round without.
        spans: Seconds that each stage takes, from a round without.
        most: Kills in this round at most.
    """

    def __init__(self, project: Project, server: Server, deck: Deck, spans: dict[str, float], most: int = 30) -> None:
        self._project, self._server, self._deck, self._spans = project, server, deck, spans
        self._most = most
        self._due: dict[int, float] = {}  # moment of the kill by process; infinity for one that is spared
        self._since: dict[int, float] = {}
        self._run_id: str | None = None
        self._last = self._alive = time.monotonic()
        self.round = Round()

    def play(self) -> Round:
        """Gives the command and kills, until a run has finished."""
        began = time.monotonic()
        while not self._is_finished():
            scene = look(self._project)
            self._note(scene)
            self._kill_due(scene)
            if time.monotonic() - began > LIMIT:
                self.round.hand_needed.append(self._plight(scene))
                break
            time.sleep(0.1)
        self.round.seconds = time.monotonic() - began
        return self.round

    def _is_finished(self) -> bool:
        """Asks for the run's state, about once a second; gives the command where no run is under way."""
        if self._run_id is None:
            self._run_id = self._project.ask()
            self.round.commands += self._run_id is not None
            self._alive = time.monotonic()
        elif time.monotonic() - self._last > 1:
            self._last = time.monotonic()
            kind, _ = self._server.state(self._run_id) or ("unknown", "")
            if kind == "COMPLETED":
                return True
            gone = kind == "RUNNING" and time.monotonic() - self._alive > GONE
            if kind in ENDED or gone or (kind == "PENDING" and time.monotonic() - self._alive > 3 * GONE):
                self._run_id = None
            if kind in ("SCHEDULED", "unknown"):
                self._alive = time.monotonic()
        return False

    def _note(self, scene: Scene) -> None:
        """Decides of new processes whether and when they will be hit."""
        now = time.monotonic()
        if self._run_id in scene.flows.values():
            self._alive = now
        for pid in {*scene.flows, *scene.stages} - self._due.keys():
            span, chance = (
                (self._spans.get(scene.stages[pid], 5.0) + AFTER, CHANCE) if pid in scene.stages else (8.0, EARLY)
            )
            hit = self._deck.generator.random() < chance and self._spans
            self._due[pid] = now + self._deck.generator.uniform(0, span) if hit else float("inf")
            self._since.setdefault(pid, now)
        for pid, name in scene.stages.items():
            self.round.spans[name] = now - self._since[pid]

    def _kill_due(self, scene: Scene) -> None:
        for pid, moment in list(self._due.items()):
            if time.monotonic() < moment or len(self.round.kills) >= self._most:
                continue
            del self._due[pid]  # what lives on is hit again
            if drawn := self._deck.draw(scene, self._project, pid):
                self._kill(*drawn, scene)
                return

    def _kill(self, kind: str, pids: list[int], scene: Scene) -> None:
        kill(kind, pids)
        took = seconds_to_end(scene.run) if kind == "preempt" else None
        self.round.kills.append(Kill(kind, time.time(), scene.under_way, took))

    def _plight(self, scene: Scene) -> str:
        state = self._server.state(self._run_id) if self._run_id else None
        return f"after {LIMIT:.0f} s and {self.round.commands} commands the run is {state}, with {scene}"


@dataclass(frozen=True)
class Reference:
    """What a run leaves that nobody kills: hashes by output, keys by stage, seconds by stage."""

    outputs: dict[str, str]
    records: dict[str, str | None]
    spans: dict[str, float]


def judge(project: Project, reference: Reference) -> Verdict:
    """Holds what a round has left against the reference."""
    lost, stale = compare(fingerprints(project.root), reference.outputs)
    lost += [f"record of {name}" for name in unrecorded(project.root, reference.records)]
    if not lost:
        lost += [f"object {name}" for name in unsent(sent(project.root), stored(project))]
    history = executions(project.root / "logs")
    told = [each for each in history if each.steps and each.status == "KILLED"]
    return Verdict(lost, stale, repeats(history, CHECKPOINT, REPORT), redone(history, REPORT), len(told))


def stored(project: Project) -> dict[str, int]:
    """Returns the sizes of the objects of the round's remote, by the MD5 that names them."""
    client, prefix = make_client(project.stack.settings), f"{project.remote}/files/md5/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=project.stack.settings.bucket, Prefix=prefix)
    objects = [each for page in pages for each in page.get("Contents", ())]
    return {each["Key"].removeprefix(prefix).replace("/", ""): each["Size"] for each in objects}


def hits(kills: list[Kill]) -> dict[str, int]:
    """Returns how many kills came while a stage was under way, by stage; "none" where none was."""
    return dict(sorted(Counter(name.partition("@")[0] for k in kills for name in k.under_way or ("none",)).items()))
