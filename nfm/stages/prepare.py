"""prepare: data set to shuffled shards of pixels or latents with a manifest."""

import sys
from pathlib import Path

from nfm.build.data import image_section, make_source, with_latents
from nfm.config import LatentsData, Params
from nfm.data.stream import Store
from nfm.data.writing import write_splits
from nfm.stages.run import stage_run


def prepare(root: Path, params: Params) -> None:
    """Writes artifacts/data/train and artifacts/data/test."""
    with stage_run("prepare", root, params, sections={"data": params.data}) as run:
        if not run.main:
            return
        source = make_source(params.data, root, _say)
        if isinstance(params.data, LatentsData):
            source = with_latents(source, params.data, root, run.device)
        seed = image_section(params.data).seed
        store = None if params.stream is None else Store(params.stream)
        write_splits(root / "artifacts" / "data", source, seed=seed, key=run.key, store=store, say=_say)
        counts = {"train": len(source.train), "test": len(source.test)}
        run.write_metrics("prepare", counts | {"classes": len(source.classes)})


def _say(line: str) -> None:
    print(f"prepare  {line}", file=sys.stderr, flush=True)
