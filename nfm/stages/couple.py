"""couple: what one coupling needs before a student can train on its pairs."""

from pathlib import Path

from nfm.build.coupling import prepare_coupling
from nfm.config import Params, TeacherCoupling
from nfm.data.shards import Split
from nfm.stages.run import stage_run


def couple(root: Path, params: Params, coupling: str, seed: int) -> None:
    """Writes artifacts/coupling/<coupling>-<seed>/ and the coupling's diagnostics."""
    section, item = params.coupling[coupling], f"{coupling}-{seed}"
    data = root / "artifacts" / "data" / "train"
    split = Split.open(data, verify=True)
    from_teacher = isinstance(section, TeacherCoupling)
    teacher = root / "artifacts" / "teacher" / str(seed) / "teacher.safetensors"
    with stage_run(
        f"couple-teacher@{seed}" if from_teacher else f"couple@{item}",
        root,
        params,
        sections={f"coupling.{coupling}": section},
        inputs=[data / "manifest.json", *[teacher] * from_teacher],
        tags={"seed": seed, "coupling": coupling},
    ) as run:
        if run.main:
            diagnostics = prepare_coupling(
                section,
                root / "artifacts" / "coupling" / item,
                split,
                teacher=teacher,
                seed=seed,
                batch=params.run.sample_batch,
                device=run.device,
            )
            run.write_metrics(f"couple/{item}", diagnostics)
            run.report({k: v for k, v in diagnostics.items() if isinstance(v, float)}, 0)
