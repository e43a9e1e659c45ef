"""A training's plan from its `train` section and the `run` section."""

from nfm.config import Run, Train
from nfm.train.plan import Plan


def make_plan(train: Train, run: Run) -> Plan:
    """Joins what decides the result (`train`) with what only this machine needs (`run`)."""
    precision = "no" if train.precision == "fp32" else train.precision  # accelerate's name for it
    return Plan(
        **train.model_dump(exclude={"precision", "window"}),
        precision=precision,
        micro_batch=run.micro_batch,
        checkpoint_every=run.checkpoint_every,
        log_every=run.log_every,
    )
