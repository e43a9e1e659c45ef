"""teacher: a TarFlow trained by maximum likelihood on noised images."""

from pathlib import Path

from nfm.build.data import open_training_images
from nfm.build.teacher import make_teacher, save_teacher, teacher_arguments
from nfm.config import Params
from nfm.stages.fit import fit
from nfm.stages.run import stage_run
from nfm.teacher.loss import teacher_loss


def teacher(root: Path, params: Params, seed: int) -> None:
    """Writes artifacts/teacher/<seed>/teacher.safetensors, the averaged weights."""
    section = params.teacher
    data = root / "artifacts" / "data" / "train"
    split = open_training_images(root, params)
    arguments = teacher_arguments(section, split.shape, len(split.classes))
    with stage_run(
        f"teacher@{seed}",
        root,
        params,
        sections={"teacher": section},
        inputs=[data / "manifest.json"],
        tags={"seed": seed},
    ) as run:

        def loss(model, batch, generator):
            return teacher_loss(
                model,
                batch.data,
                batch.label if section.conditional else None,
                generator,
                noise_std=section.noise_std,
                label_drop=section.label_drop,
            )

        trained = fit(run, lambda: make_teacher(arguments), loss, split, section.train, params, seed)
        run.write_metrics(f"teacher/{seed}", {"loss": trained.loss, "skipped": trained.skipped})
        if run.main:
            path = root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"
            save_teacher(path, trained.ema, arguments, section.noise_std)
