"""Processes: how many a training should have, and accelerate's view of them."""

import os
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env

from nfm.errors import InputError

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def process_count() -> int:
    """Returns how many processes `accelerate launch` would start, 1 where it has started this one.

    The number is that in accelerate's config file where there is one, else that of CUDA devices.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by the launcher, also for one process
        return 1
    if os.path.isfile(default_config_file):
        return max(1, getattr(load_config_from_file(None), "num_processes", 1))
    return max(1, torch.cuda.device_count())


def open_processes() -> PartialState:
    """Returns accelerate's view of this process among those of its launch.

    Without an accelerator they speak by gloo. Left alone, accelerate would take each of them for the
    only one there, since it looks for a CPU's processes only where ACCELERATE_USE_CPU is set.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available())
    )


def open_accelerator(precision: Literal["no", "bf16", "fp16"]) -> Accelerator:
    """Returns an accelerator of a precision, whatever this process has used before.

    Raises:
        InputError: The precision does not go with the device, or accelerate is to shard the model.
    """
    # accelerate keeps the precision of a process's first accelerator and refuses another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if precision == "fp16" and accelerator.scaler is None:
        raise InputError(
            f"precision is 'fp16', which the device {accelerator.device} does not train in; use 'bf16' or 'fp32'"
        )
    if accelerator.distributed_type in _SHARDED:
        raise InputError(
            f"accelerate is set up for {accelerator.distributed_type.value}, but every process "
            "must hold the whole model; run `accelerate config` and choose plain multi-GPU"
        )
    return accelerator
