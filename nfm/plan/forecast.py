"""A params file's forecast: parameters, FLOPs, bytes and time, as plain values."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nfm.config import Params, SemidiscreteOTCoupling
from nfm.plan import count
from nfm.plan.gpu import Gpu
from nfm.plan.measure import SECONDS, Bench
from nfm.plan.networks import Networks, make_networks
from nfm.plan.size import Size
from nfm.plan.storage import Artifact, Draws, advise, artifacts
from nfm.plan.work import Stage, stages


@dataclass(frozen=True)
class Forecast:
    """What a params file takes.

    Attributes:
        size: Of the data set.
        parameters: Weights by network; those of latents' autoencoder are not trained.
        stages: What computes, in the order of dvc.yaml.
        artifacts: What is written.
        draws: Stored against online draws; None without a teacher's coupling.
        notes: What a table does not show, one sentence each.
    """

    size: Size
    parameters: dict[str, int]
    stages: list[Stage]
    artifacts: list[Artifact]
    draws: Draws | None
    notes: list[str]


def forecast(params: Params, size: Size, *, disk: float) -> Forecast:
    """Counts what a params file takes, on shapes alone.

    Arguments:
        params: All params.
        size: Of the data set.
        disk: Bytes that one seed's stored pairs may take.

    Raises:
        InputError: A section does not fit the data set.
    """
    networks = make_networks(params, size)
    numbers = {
        "features": count.parameters(networks.features),
        "teacher": count.parameters(networks.teacher),
        "student": count.parameters(networks.student),
    }
    if networks.autoencoder is not None:
        numbers["autoencoder"] = count.parameters(networks.autoencoder)
    listed = stages(params, size, networks)
    written = artifacts(params, size, networks)
    return Forecast(size, numbers, listed, written, advise(params, size, disk), _notes(params, size, networks))


def measure(
    params: Params,
    size: Size,
    listed: list[Stage],
    device: torch.device,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Returns the seconds that each unit of some stages' work takes on this machine; takes a minute or two.

    Arguments:
        params: All params.
        size: Of the data set.
        listed: The stages.
        device: Where to compute.
        seconds: To spend on each unit.
        clock: Gives the time, seconds.
    """
    units = {work.unit for stage in listed for work in stage.work}
    with tempfile.TemporaryDirectory() as folder:
        return Bench(params, size, Path(folder), device, seconds, clock).time(units)


def as_json(found: Forecast, gpu: Gpu, utilisation: float, measured: Mapping[str, float]) -> dict[str, Any]:
    """Returns all that the table shows, and each stage's units, as plain values."""
    return {
        "data": asdict(found.size),
        "parameters": found.parameters,
        "gpu": asdict(gpu) | {"utilisation": utilisation},
        "stages": [
            {
                "name": stage.name,
                "runs": stage.runs,
                "flops": stage.flops,
                "gpu_hours": stage.seconds(gpu, utilisation) / 3600,
                "work": [asdict(work) for work in stage.work],
            }
            | ({"seconds_here": stage.measured(measured)} if measured else {})
            for stage in found.stages
        ],
        "seconds_by_unit": dict(measured),
        "artifacts": [asdict(artifact) for artifact in found.artifacts],
        "draws": None if found.draws is None else asdict(found.draws),
        "notes": found.notes,
    }


def _notes(params: Params, size: Size, networks: Networks) -> list[str]:
    passes = count.decode_passes(networks.teacher)
    notes = [
        f"The teacher decodes in {passes:,} passes through a block, each waiting for the one before: time there is for "
        "moving weights, keys and values, and larger batches help more than a faster chip.",
        "Sampling and measuring count in fp32, whatever evaluate.precision is; the trainings and the encoding of pairs "
        "in the precision that their sections name.",
        "Hours are of arithmetic at the stated share of the peak, of memory or of launches, whichever is longest; what "
        "runs on the host is not in them: reading images, moments, two-sample tests, distances of features, figures.",
    ]
    if size.kept:
        notes.append(
            "The autoencoder is the one that data.autoencoder/config.json describes, or as wide as Stable Diffusion's "
            "where that file is not there; it encodes in prepare and decodes every sample that is measured."
        )
    whole = 4 * size.train * size.dimensions
    names = [name for name in params.couplings if isinstance(params.coupling[name], SemidiscreteOTCoupling)]
    if names and whole > 1e9:
        notes.append(
            f"couple@{names[0]} holds all images on the device, student@{names[0]} twice: {whole / 1e9:,.0f} GB."
        )
    return notes
