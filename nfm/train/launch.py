"""Processes: how many a training should have, and accelerate's view of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedType,
    DynamoBackend,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    parse_flag_from_env,
)

from nfm.errors import InputError
from nfm.nn.compiler import require_compiler

REFUSAL = "NFM_REFUSAL"  # environment variable: the file where a launched process leaves its sentence on bad input
_OTHERS = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def process_count() -> int:
    """Returns how many processes `accelerate launch` would start, 1 where it or torchrun has started this one.

    The number is that in accelerate's config file where there is one, else that of CUDA devices.
    """
    if {"ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"} & os.environ.keys():  # set by the launcher, also for one process
        return 1
    if os.path.isfile(default_config_file):
        return max(1, getattr(load_config_from_file(None), "num_processes", 1))
    return max(1, torch.cuda.device_count())


def relaunch(arguments: Sequence[str]) -> int:
    """Runs a command of ours under `accelerate launch`.

    Arguments:
        arguments: Of `python -m nfm`.

    Returns:
        The launcher's exit status, 128 and more for a signal.

    Raises:
        InputError: A process refused its input. The launcher answers that with a traceback, which is left out.
    """
    with TemporaryDirectory() as folder:
        sentence = Path(folder) / "sentence"
        command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "nfm", *arguments]
        child = subprocess.Popen(
            command, env={**os.environ, REFUSAL: str(sentence)}, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        stopped: list[int] = []

        def stop(number: int, _: object) -> None:
            stopped.append(number)
            child.terminate()

        signal.signal(signal.SIGTERM, stop)
        assert child.stderr is not None
        with child.stderr:
            for line in child.stderr:
                if not sentence.exists():
                    sys.stderr.write(line)
                    sys.stderr.flush()
        status = child.wait()
        if sentence.exists():
            raise InputError(sentence.read_text())
    if stopped:
        return 128 + stopped[0]  # the launcher would say 1
    return status if status >= 0 else 128 - status


def open_processes() -> PartialState:
    """Returns accelerate's view of this process among those of its launch.

    Without an accelerator they speak by gloo. Left alone, accelerate would take each of them for the
    only one there, since it looks for a CPU's processes only where ACCELERATE_USE_CPU is set.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available())
    )


def open_accelerator(precision: Literal["no", "bf16", "fp16"], compile: bool = False) -> Accelerator:
    """Returns an accelerator of a precision, whatever this process has used before.

    Arguments:
        precision: Of the forward pass.
        compile: Whether models are compiled, by the backend that accelerate is set to or else by inductor.

    Raises:
        InputError: The precision does not go with the device, accelerate is to shard the model, or
            there is no compiler.
    """
    # accelerate keeps the precision of a process's first accelerator and refuses another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=_regions() if compile else None,
    )
    if precision == "fp16" and accelerator.scaler is None:
        raise InputError(
            f"precision is 'fp16', which the device {accelerator.device} does not train in; use 'bf16' or 'fp32'"
        )
    if accelerator.distributed_type in _OTHERS:
        raise InputError(
            f"accelerate is set up for {accelerator.distributed_type.value}, expected plain multi-GPU or FSDP of "
            "version 2; run `accelerate config`, or take a file of infra/accelerate"
        )
    return accelerator


def compile_backend(accelerator: Accelerator) -> str | None:
    """Returns by what an accelerator compiles models, None where it does not."""
    plugin = accelerator.state.dynamo_plugin
    return None if plugin is None or plugin.backend == DynamoBackend.NO else plugin.backend.value.lower()


def _regions() -> TorchDynamoPlugin:
    """Returns the wish that a model's repeated layers are compiled, once for all of them."""
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()  # the launcher sets it to "no"
    require_compiler("train.compile")
    return TorchDynamoPlugin(
        backend="inductor" if backend == "no" else backend,  # pyright: ignore[reportArgumentType]
        use_regional_compilation=True,
    )
