"""features: the classifier whose penultimate layer the Fréchet distance is measured on."""

from pathlib import Path

from nfm.build.data import open_training_images
from nfm.build.features import (
    features_arguments,
    features_task,
    make_features,
    measure_features,
    save_features,
)
from nfm.config import Params
from nfm.data.shards import Split
from nfm.metrics.features import classifier_loss, rotation_loss
from nfm.stages.fit import fit
from nfm.stages.run import stage_run


def features(root: Path, params: Params) -> None:
    """Writes artifacts/features/features.safetensors and its test accuracy."""
    section = params.features
    train_data, test_data = (root / "artifacts" / "data" / name for name in ("train", "test"))
    split, test = open_training_images(root, params).visible, Split.open(test_data, verify=True).visible
    arguments = features_arguments(section, split.shape, len(split.classes))
    with stage_run(
        "features",
        root,
        params,
        sections={"features": section},
        inputs=[train_data / "manifest.json", test_data / "manifest.json"],
        tags={"seed": section.seed},
    ) as run:

        def loss(model, batch, generator):
            if batch.label is None:
                return rotation_loss(model, batch.data, generator)
            return classifier_loss(model, batch.data, batch.label, generator)

        trained = fit(
            run,
            lambda: make_features(arguments),
            loss,
            split,
            section.train,
            params,
            section.seed,
        )
        run.write_metrics("features", measure_features(trained.ema, test))
        if run.main:
            path = root / "artifacts" / "features" / "features.safetensors"
            save_features(path, trained.ema, arguments, features_task(len(split.classes)))
