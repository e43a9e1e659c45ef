"""Runs the variants of a study through the pipeline, and joins what they measured in one file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from flows.pipeline import REFUSED, pipeline
from flows.workspace import commit_of, params_of, place_of
from nfm.artifacts import write_json
from nfm.errors import InputError
from nfm.figures import fd_curves
from nfm.study import joined, load_study, rows, table

FOLDER = Path("results") / "studies"


@flow(name="nfm-study")
def study(name: str) -> State[None]:
    """Brings every variant up to date, each in a workspace of its own over the shared cache.

    Arguments:
        name: Of a file in nfm/recipes/studies.
    """
    root = Path.cwd()
    try:
        asked = load_study(name)
        # All are checked before the first one runs.
        params = {v: params_of(root, asked.recipe, asked.overrides(v)) for v in asked.variants}
    except InputError as error:
        return Failed(name=REFUSED, message=str(error))
    run: Any = pipeline
    for variant in asked.variants:
        state = run(asked.recipe, asked.overrides(variant), return_state=True)
        if not state.is_completed():
            return Failed(message=f"{variant}: {state.message}")
    summaries = {v: _summary(place_of(root, p)) for v, p in params.items()}
    results = joined(asked, summaries, commit_of(root))
    write_json(root / FOLDER / f"{name}.json", results)
    fd_curves({row.name: row.fd for row in rows(results)}, root / FOLDER / f"{name}.svg", images="validation")
    return Completed(message=f"{FOLDER / name}.json: {len(summaries)} variants")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a study from the command line.

    Returns:
        0 when all variants are done, 1 when a stage failed, 2 on bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.study", description=__doc__)
    parser.add_argument("name", help="of a file in nfm/recipes/studies, such as draws")
    given = parser.parse_args(arguments)
    try:
        load_study(given.name)
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        return 2
    run: Any = study
    state = run(given.name, return_state=True)
    if not state.is_completed():
        print(f"nfm: {state.message}", file=sys.stderr)
        return 2 if state.name == REFUSED else 1
    results = json.loads((Path.cwd() / FOLDER / f"{given.name}.json").read_text())
    print(f"\n{results['question']}\n\n{table(results)}\n\n{state.message}")
    return 0


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results" / "summary.json").read_text())


if __name__ == "__main__":
    sys.exit(main())
