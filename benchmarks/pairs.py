"""Two runs at once on one checkout: writes results/pairs.json, in some ten minutes of two cores.

Two flow runs; `dvc repro` by hand beside a flow run; and a flow run beside `dvc repro`. Each pair has new params, so
that all its stages are out of date; the second process starts up to six seconds after the first, by a seeded draw. Both
are to end well, with every stage up to date and sound, and without a word on locks. A stage that both have executed is
counted: that is not wrong, but time lost.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.checkout import Checkout
from flows.words import BUSY
from nfm.artifacts import write_json
from nfm.config import read_mapping, with_overrides
from tests.servers import prefect_server_in
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "pairs.json"
STAGES = ("couple", "teacher")  # and `prepare`, which both need
LATEST = 6.0  # seconds after which the second process has started
KINDS = {"flow+flow": ("flow", "flow"), "flow+dvc": ("flow", "dvc"), "dvc+flow": ("dvc", "flow")}
PATIENCE = 600  # seconds for a pair


@dataclass(frozen=True)
class Pair:
    """What two runs at once have come to.

    Attributes:
        right: Whether both ended with status 0, and all stages are up to date and sound.
        lock_errors: How many of the two have shown an error on locks.
        twice: Stages that both have executed.
        seconds: From the first start to the last end.
        outputs: Of both processes.
    """

    right: bool
    lock_errors: int
    twice: list[str]
    seconds: float
    outputs: tuple[str, str]


def make_project(folder: Path) -> None:
    """Makes a checkout of this project with tiny params, in which nothing has run."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and not name.startswith(("results/", "tests/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "project"]):
        subprocess.run(
            ["git", "-c", "user.name=nfm", "-c", "user.email=nfm@localhost", *command], cwd=folder, check=True
        )


def run_pair(
    folder: Path, kind: str, delay: float, seed: int, environment: dict[str, str], stages: Sequence[str] = STAGES
) -> Pair:
    """Runs two processes at once and looks at what they have left.

    Arguments:
        folder: The project.
        kind: Of `KINDS`.
        delay: Seconds between the starts.
        seed: Of the data's order, so that every stage is out of date.
        environment: Of both.
        stages: What both bring up to date.
    """
    params = with_overrides(read_mapping(ROOT / "params.yaml"), {**TINY, "data.seed": seed})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    named = list(Checkout(folder).plan(stages).upstream)
    asked = sorted(Checkout(folder).named(stages))
    commands = {
        "flow": ["flows.pipeline", "--stages", *stages],
        "dvc": ["dvc", "repro", *asked],
    }
    start, running = time.monotonic(), []
    with tempfile.TemporaryDirectory() as logs:
        for number, what in enumerate(KINDS[kind]):
            time.sleep(delay * number)
            log = Path(logs) / str(number)
            with log.open("w") as file:
                command = [sys.executable, "-m", *commands[what]]
                process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
            running.append((process, log))
        statuses = [process.wait(PATIENCE) for process, _ in running]
        seconds = time.monotonic() - start
        first, second = (log.read_text() for _, log in running)
    checkout = Checkout(folder)
    checkout.plan(stages)
    sound = all(checkout.is_current(stage) and not checkout.damaged(stage) for stage in named)
    errors = sum(any(words in text for words in BUSY) for text in (first, second))
    twice = sorted(executed(first) & executed(second))
    return Pair(sound and not any(statuses), errors, twice, seconds, (first, second))


def executed(log: str) -> set[str]:
    """Returns the stages that a flow or `dvc repro` has executed."""
    return set(re.findall(r"Running stage '([^']+)'", log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as home:
        base = Path(home)
        make_project(base / "project")
        with prefect_server_in(base) as address:
            environment = {**os.environ, "PREFECT_API_URL": address, "NFM_TRACKER": "none", "NFM_WORKERS": "2"}
            result: dict[str, Any] = {"stages": list(STAGES), "seed": given.seed, "cores": os.cpu_count()}
            for kind in KINDS:
                pairs, delays = [], [round(draw.uniform(0, LATEST), 2) for _ in range(given.pairs)]
                for number, delay in enumerate(delays):
                    seed = 1 + number + 1000 * list(KINDS).index(kind)
                    pairs.append(run_pair(base / "project", kind, delay, seed, environment))
                    print(
                        f"{kind} {number} {delay} s: {pairs[-1].right} {pairs[-1].lock_errors} {pairs[-1].twice}",
                        flush=True,
                    )
                    if not pairs[-1].right:
                        print(*(text[-1500:] for text in pairs[-1].outputs), sep="\n-----\n", flush=True)
                result[kind] = summary(pairs, delays)
    write_json(RESULT, result)


def summary(pairs: Sequence[Pair], delays: Sequence[float]) -> dict[str, Any]:
    """Returns the figures of all pairs of a kind."""
    return {
        "pairs": len(pairs),
        "both_right": sum(pair.right for pair in pairs),
        "lock_errors": sum(pair.lock_errors for pair in pairs),
        "trained_twice": sum(len(pair.twice) for pair in pairs),
        "seconds": [round(pair.seconds, 1) for pair in pairs],
        "delays": list(delays),
    }


if __name__ == "__main__":
    main()
