"""Writes results/chaos.json: 200 kills of what makes up a run, at random moments, and what they cost."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos.project import ROOT
from benchmarks.chaos.trial import trial
from nfm.artifacts import write_json

RESULT = ROOT / "results" / "chaos.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--seconds", type=float, default=3300, help="after which no further round begins")
    parser.add_argument("--references", type=int, default=2, help="runs without a kill, before")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else the stack would stay
    result = trial(
        Path(tempfile.gettempdir()),
        given.kills,
        given.seed,
        references=given.references,
        seconds=given.seconds,
        say=lambda line: print(line, flush=True),
    )
    write_json(given.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
