"""student: a SiT trained on the pairs of one coupling, by flow matching unless the coupling is for a single step."""

from dataclasses import asdict
from pathlib import Path

from nfm.build.coupling import load_coupling
from nfm.build.data import open_training_images
from nfm.build.student import make_student, save_student, student_arguments
from nfm.config import Params
from nfm.stages.fit import fit
from nfm.stages.run import stage_run
from nfm.student.loss import one_step_loss, student_loss


def student(root: Path, params: Params, coupling: str, seed: int) -> None:
    """Writes artifacts/student/<coupling>-<seed>/student.safetensors, the averaged weights."""
    section, item = params.student, f"{coupling}-{seed}"
    data = root / "artifacts" / "data" / "train"
    pairing = root / "artifacts" / "coupling" / item
    split = open_training_images(root, params)
    arguments = student_arguments(section, split.shape, len(split.classes))
    with stage_run(
        f"student@{item}",
        root,
        params,
        sections={"student": section},
        inputs=[data / "manifest.json", pairing / "coupling.json"],
        tags={"seed": seed, "coupling": coupling},
    ) as run:
        pairs_of = load_coupling(pairing, split, run.device, verify=True)

        def loss(model, batch, generator):
            pairs, drop = pairs_of.pair(batch, generator), {"label_drop": section.label_drop}
            learnt = (model, pairs.data, pairs.noise, pairs.label if section.conditional else None, generator)
            if pairs_of.one_step:
                return one_step_loss(*learnt, **drop)
            times = {"time_mean": section.time.mean, "time_std": section.time.std}
            return student_loss(*learnt, **times, **asdict(pairs_of.redraw), **drop)

        trained = fit(run, lambda: make_student(arguments), loss, split, section.train, params, seed)
        run.write_metrics(f"student/{item}", {"loss": trained.loss, "skipped": trained.skipped})
        if run.main:
            path = root / "artifacts" / "student" / item / "student.safetensors"
            save_student(path, trained.ema, arguments, pairs_of.one_step)
            run.tracker.model(path)
