"""Settings on which every stage takes a second."""

TINY = {
    **{
        f"{stage}.train.{key}": value
        for stage in ("features", "teacher", "student")
        for key, value in {"steps": 2, "batch": 16, "warmup": 1}.items()
    },
    "couplings": ["semidiscrete-ot", "teacher"],
    "features.width": 8,
    "teacher.blocks": 2,
    "teacher.width": 32,
    "student.width": 32,
    "student.depth": 1,
    "coupling.semidiscrete-ot.steps": 20,
    "coupling.teacher.gate.allow": True,  # two updates make no teacher
    "evaluate.samples": 20,
    "evaluate.euler": [1, 5],
    "evaluate.heun": [5],
    "evaluate.curvature_steps": 4,
}
