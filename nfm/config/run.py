"""The section `run`: how stages run on a machine."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from nfm.config.section import Section


class FanOut(Section):
    """How the flow shares out the encoding of a teacher's coupling."""

    tasks: PositiveInt  # 1: the stage encodes by itself
    runner: Literal["threads", "dask", "ray"]  # what runs them, some at once
    address: str | None  # of a running Dask or Ray cluster; null for one of the flow's own


class Run(Section):
    """How stages run on this machine; changes no result and reruns nothing."""

    checkpoint_every: NonNegativeInt  # updates between checkpoints, 0 for none
    log_every: PositiveInt  # updates between lines and logged metrics
    micro_batch: PositiveInt | None  # images per process and forward pass; null for all at once
    sample_batch: PositiveInt  # images sampled or encoded at once
    cache_gb: PositiveFloat  # GB that shards of images take on the disk where they are streamed
    fan_out: FanOut
