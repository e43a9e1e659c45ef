"""The command `plan`: from params to the text that it prints."""

from pathlib import Path

from nfm.artifacts import write_json
from nfm.config import Params, nearest
from nfm.errors import InputError
from nfm.plan.forecast import as_json, forecast, measure
from nfm.plan.gpu import GPUS
from nfm.plan.size import data_size
from nfm.plan.table import as_text
from nfm.stages.run import stage_device
from nfm.train.launch import open_processes


def command(
    params: Params,
    root: Path,
    *,
    gpu_name: str,
    utilisation: float,
    images: int | None,
    classes: int | None,
    disk: float,
    measured: bool,
    file: Path | None,
) -> str:
    """Returns the forecast of some params as text.

    Arguments:
        params: All params.
        root: The project's folder.
        gpu_name: A key of `GPUS`.
        utilisation: Share of its peak that is reached.
        images: Number of images where the data set cannot be counted.
        classes: Number of classes, likewise.
        disk: Bytes that one seed's stored pairs may take.
        measured: Whether to time each unit of work on this machine.
        file: Where to write all figures as JSON; None for nowhere.

    Raises:
        InputError: The GPU is unknown, or the data set's size.
    """
    if gpu_name not in GPUS:
        raise InputError(f"--gpu is {gpu_name!r}, which is not in nfm/plan/gpu.py{nearest(gpu_name, GPUS)}")
    gpu, size = GPUS[gpu_name], data_size(params.data, root, images, classes)
    found = forecast(params, size, disk=disk)
    seconds = measure(params, size, found.stages, stage_device(open_processes())) if measured else {}
    if file is not None:
        write_json(file, as_json(found, gpu, utilisation, seconds))
    return as_text(found, gpu_name, gpu, utilisation, seconds)
