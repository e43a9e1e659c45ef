"""A student's velocity network as a program of torch.export, which runs without this package."""

import io
import json
from pathlib import Path

import torch
from torch import Tensor

from nfm.errors import InputError
from nfm.serving.command import check_file, write
from nfm.serving.found import find_sampler
from nfm.student.velocity import SiT

TOLERANCE = 1.0e-4  # of the velocity, which is of the size of 1
BATCHES = (1, 3, 64)  # that the program is held against the network on


def export(model: str, out: Path, root: Path) -> str:
    """Writes the velocity network to a file, once the program is found equal to it.

    The program takes x with shape (B, C, H, W), t with shape (B,) and, where the student knows classes, label with
    shape (B,), in which the number of classes stands for no label; it gives the velocity. Any B will do.

    Arguments:
        model: Whose network, see `find_sampler`.
        out: The file to write, for `torch.export.load`.
        root: Folder of the project.

    Returns:
        A line on what was written.

    Raises:
        InputError: There is no such student, the program differs from it, or the file cannot be written.
    """
    check_file(out, ".pt2")
    sampler = find_sampler(model, root)
    network = sampler.student.model.cpu()
    # Strict: else the network's len(x) would hold the program to one size of batch.
    program = torch.export.export(network, _inputs(network, 2), dynamic_shapes=_any_batch(network), strict=True)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"nfm.json": json.dumps(dict(sampler.origin), sort_keys=True)})
    difference = _difference(network, file)
    if not difference <= TOLERANCE:
        raise InputError(f"the exported program differs from the student by {difference:.1e}, expected {TOLERANCE:g}")
    write(out, file.getvalue())
    return f"{out}: {len(file.getvalue())} bytes, within {difference:.1e} of the student on batches of {BATCHES}"


@torch.no_grad()
def _difference(network: SiT, file: io.BytesIO) -> float:
    """Returns the largest difference in velocity between a network and the program in a file."""
    file.seek(0)
    program = torch.export.load(file).module()
    inputs = [_inputs(network, batch) for batch in BATCHES]
    return max((program(*each) - network(*each)).abs().max().item() for each in inputs)


def _inputs(network: SiT, batch: int) -> tuple[Tensor, ...]:
    """Draws x, t and, for a network that knows classes, labels, the last of which is none."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, *network.shape, generator=generator)
    t = torch.rand(batch, generator=generator)
    if network.classes is None:
        return x, t
    return x, t, torch.arange(network.classes, network.classes - batch, -1) % (network.classes + 1)


def _any_batch(network: SiT) -> tuple[dict[int, torch.export.Dim], ...]:
    return ({0: torch.export.Dim("batch")},) * (2 if network.classes is None else 3)
