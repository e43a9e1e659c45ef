"""The whole trial: runs without a kill, rounds with kills, and what is still called Running at the end."""

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos.judge import Verdict, fingerprints, is_compared, recorded
from benchmarks.chaos.project import ROOT, SIGN, WITHIN, Project, run
from benchmarks.chaos.rounds import Deck, Kill, Player, Reference, Round, hits, judge
from benchmarks.chaos.scene import KINDS, kill, look
from benchmarks.chaos.server import Server

PATIENCE = WITHIN + SIGN + 70.0  # seconds until the dead are found, and their tasks are the next run's to call Crashed
COUNTS = ("lost", "stale", "trained_twice", "hand_needed")
Say = Callable[[str], None]


def trial(
    base: Path, kills: int, seed: int, *, references: int, seconds: float, say: Say, short: bool = False
) -> dict[str, Any]:
    """Kills until the kills are used up, and returns what became of it.

    Arguments:
        base: Folder to make a folder in, which PostgreSQL's user may enter.
        kills: How many, each kind as often as any other.
        seed: Of kinds, moments and whom they hit.
        references: Runs without a kill; from two on, outputs that differ between them are an error.
        seconds: After which no further round begins.
        say: Told of every round.
        short: Whether to train for less, to do without the time in which the dead are found at the end, and to take the
            kinds in their order.
    """
    home = Path(tempfile.mkdtemp(prefix="nfm-", dir=base))
    home.chmod(0o755)
    project = Project(home / "project", short)
    began = time.monotonic()
    try:
        project.start()
        say(f"{project.root}: the stack is up after {time.monotonic() - began:.0f} s")
        deck = Deck(kills, random.Random(seed), shuffled=not short)
        result = _Trial(project, deck, say).run(references, 0.0 if short else PATIENCE, began + seconds)
    finally:
        project.stop()
        shutil.rmtree(home)
    commit = run(ROOT, "git", "rev-parse", "HEAD").strip()
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    return {"commit": commit, "seed": seed, **machine, "seconds": round(time.monotonic() - began), **result}


class _Trial:
    def __init__(self, project: Project, deck: Deck, say: Say) -> None:
        self._project, self._deck, self._say = project, deck, say
        self._server = Server(project.stack.settings)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._notes: list[str] = []
        self._rounds: list[Round] = []
        self._redone = self._told = 0

    def run(self, references: int, patience: float, until: float) -> dict[str, Any]:
        reference = self._reference(references)
        number = 0
        while len(self._deck) and time.monotonic() < until:
            number += 1
            self._project.wipe(number)
            played = Player(self._project, self._server, self._deck, reference.spans).play()
            verdict = judge(self._project, reference) if not played.hand_needed else Verdict()
            self._count(number, played, verdict)
            if played.hand_needed:
                self._clear()
        return self._result(reference) | self._settled(patience)

    def _reference(self, times: int) -> Reference:
        """Runs without a kill."""
        found: list[dict[str, str]] = []
        for number in range(times):
            self._project.wipe(-number)
            played = Player(self._project, self._server, Deck(0, random.Random(0)), {}).play()
            assert not played.hand_needed, played.hand_needed
            found.append(fingerprints(self._project.root))
            self._say(f"without a kill: {played.seconds:.0f} s, {played.spans}")
        differing = [
            path for path in found[0] if is_compared(path) and any(f.get(path) != found[0][path] for f in found)
        ]
        assert not differing, f"these differ from run to run without a kill: {differing}"
        return Reference(found[0], recorded(self._project.root), played.spans)

    def _count(self, number: int, played: Round, verdict: Verdict) -> None:
        last = played.kills[-1].kind if played.kills else "none"
        self._rounds.append(played)
        self._redone += verdict.redone
        self._told += verdict.told
        for each in played.kills:
            self._counts[each.kind, "kills"] += 1
        self._counts[last, "lost"] += len(verdict.lost)
        self._counts[last, "stale"] += len(verdict.stale)
        self._counts[last, "hand_needed"] += len(played.hand_needed)
        for each in verdict.repeats:
            self._counts[_blamed(each.began, played.kills), "trained_twice"] += each.updates
        wrong = [*verdict.lost, *verdict.stale, *map(str, verdict.repeats), *played.hand_needed]
        self._notes += [f"round {number}: {line}" for line in wrong]
        kinds = " ".join(kill.kind for kill in played.kills)
        self._say(f"round {number}: {played.seconds:.0f} s, {played.commands} commands, {kinds}; {wrong or 'good'}")

    def _clear(self) -> None:
        """Makes room for the next round where one has got stuck."""
        kill("run", look(self._project).run)
        self._server.clear()

    def _settled(self, patience: float) -> dict[str, Any]:
        """Gives the dead time to be found, and the command once more, which has to find everything up to date."""
        time.sleep(patience)
        idle = Player(self._project, self._server, Deck(0, random.Random(0)), {}).play()
        left = [
            f"{run['name']} {run['state']['type']}"
            for what in ("flow_runs", "task_runs")
            for run in self._server.live(what)
        ]
        self._say(f"settled: {idle.seconds:.0f} s, {list(idle.spans)} ran, {left} still Running")
        return {
            "stages_run_again_at_the_end": sorted(idle.spans),
            "still_running": left,
            "found_dead_by_the_automation": self._server.found_dead(),
        }

    def _result(self, reference: Reference) -> dict[str, Any]:
        kills = [kill for each in self._rounds for kill in each.kills]
        took = [kill.seconds for kill in kills if kill.seconds is not None]
        compared = [path for path in reference.outputs if is_compared(path)]
        sorts = {"weights": ".safetensors", "pairs": ".f16", "metrics": ".json"}
        by_kind = {kind: {name: self._counts[kind, name] for name in ("kills", *COUNTS)} for kind in KINDS}
        return {
            "kills": len(kills),
            **{name: sum(counts for (_, n), counts in self._counts.items() if n == name) for name in COUNTS},
            "by_kind": by_kind,
            "by_stage_under_way": hits(kills),
            "rounds": len(self._rounds),
            "commands": sum(each.commands for each in self._rounds),
            "updates_redone_after_a_checkpoint": self._redone,
            "seconds_from_sigterm_to_end": {"most": round(max(took, default=0.0), 2), "of": len(took)},
            "trainings_that_saved_at_sigterm": self._told,
            "outputs": {
                "all": len(reference.outputs),
                "compared": len(compared),
                **{sort: sum(path.endswith(ending) for path in compared) for sort, ending in sorts.items()},
            },
            "notes": self._notes,
        }


def _blamed(moment: float, kills: list[Kill]) -> str:
    """Returns the kind of the last kill before a moment."""
    return next((kill.kind for kill in reversed(kills) if kill.moment <= moment), "none")
