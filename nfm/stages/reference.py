"""reference: the train and the test images, measured once for all samples that are held against them."""

import shutil
from pathlib import Path

from nfm.artifacts import atomic_path
from nfm.build.data import open_training_images
from nfm.build.measure import (
    SPLITS,
    autoencoder_path,
    features_path,
    load_ruler,
    measure_split,
    reference_path,
    save_reference,
)
from nfm.config import Params
from nfm.data.shards import Split
from nfm.errors import InputError
from nfm.metrics.fidelity import frechet
from nfm.metrics.yardstick import shared_yardstick
from nfm.stages.run import stage_run

NO_FID = (
    "FID is not measured, since evaluate.inception is null; give it the source (path or URL) and sha256 of "
    "torch-fidelity's Inception weights and run `python -m nfm fetch`"
)

LEAST = 4  # images, so that each has a third nearest neighbour


def reference(root: Path, params: Params) -> None:
    """Writes artifacts/reference/train.safetensors and test.safetensors, and the floor of FD: train against test.

    For latents, what decodes them to images lies beside them: whatever measures samples needs it.
    """
    section = params.evaluate.inception
    folders = {split: root / "artifacts" / "data" / split for split in SPLITS}
    splits = {"train": open_training_images(root, params), "test": Split.open(folders["test"], verify=True)}
    for split, images in splits.items():
        if len(images.visible) < LEAST:
            raise InputError(
                f"{folders[split]} holds {len(images.visible)} images, expected at least {LEAST} to measure samples "
                "against; add images, or change data.test_fraction"
            )
    with stage_run(
        "reference",
        root,
        params,
        sections={} if section is None else {"evaluate.inception": section},
        inputs=[folder / "manifest.json" for folder in folders.values()] + [features_path(root)] * (section is None),
    ) as run:
        if not run.main:
            return
        if section is None:
            print(NO_FID)
        ruler = load_ruler(section, root, splits["test"].visible.shape, run.device)
        measured = {split: measure_split(ruler, images) for split, images in splits.items()}
        yardstick = shared_yardstick({str(folders[split]): r.yardstick for split, r in measured.items()})
        train, test = (measured[split].statistics for split in SPLITS)
        for split, found in measured.items():
            save_reference(reference_path(root, split), found)
        if (source := splits["test"].autoencoder) is not None:
            with atomic_path(autoencoder_path(root)) as temporary:
                shutil.copyfile(source, temporary)
        run.write_metrics(
            "reference",
            {
                "floor": frechet(test, train),
                "width": len(test.mean),
                "yardstick": {**yardstick, "train": train.count, "test": test.count},
            },
        )
