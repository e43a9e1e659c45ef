"""prepare: data set to shuffled uint8 shards with a manifest."""

from pathlib import Path

from nfm.build.data import make_source
from nfm.config import Params
from nfm.data.shards import write_split
from nfm.stages.run import stage_run


def prepare(root: Path, params: Params) -> None:
    """Writes artifacts/data/train and artifacts/data/test."""
    with stage_run("prepare", root, params, sections={"data": params.data}) as run:
        source = make_source(params.data, root)
        for split, (images, labels) in {"train": source.train, "test": source.test}.items():
            if run.main:
                write_split(
                    root / "artifacts" / "data" / split,
                    images,
                    labels,
                    dataset=source.name,
                    classes=source.classes,
                    seed=params.data.seed,
                    notes=source.notes,
                )
        metrics = {"train": len(source.train[0]), "test": len(source.test[0])}
        run.write_metrics("prepare", metrics | {"classes": len(source.classes)})
