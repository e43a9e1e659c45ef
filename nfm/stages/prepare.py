"""prepare: data set to shuffled uint8 shards with a manifest."""

import sys
from pathlib import Path

from nfm.build.data import make_source
from nfm.config import Params
from nfm.data.writing import write_splits
from nfm.stages.run import stage_run


def prepare(root: Path, params: Params) -> None:
    """Writes artifacts/data/train and artifacts/data/test."""
    with stage_run("prepare", root, params, sections={"data": params.data}) as run:
        if not run.main:
            return
        source = make_source(params.data, root, _say)
        write_splits(root / "artifacts" / "data", source, seed=params.data.seed, key=run.key, say=_say)
        counts = {"train": len(source.train), "test": len(source.test)}
        run.write_metrics("prepare", counts | {"classes": len(source.classes)})


def _say(line: str) -> None:
    print(f"prepare  {line}", file=sys.stderr, flush=True)
