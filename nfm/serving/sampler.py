"""A student that answers requests, each by an image that no other request has a part in."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from nfm.build.solve import make_solver
from nfm.build.student import TrainedStudent, load_student
from nfm.data.shards import to_uint8
from nfm.errors import InputError
from nfm.serving.requests import Request, check
from nfm.solve.sample import initial_noise
from nfm.solve.solvers import grid, steps_for
from nfm.student.velocity import guided

GRID = "t2"  # of times, as the recipes evaluate


@dataclass(frozen=True)
class Sampler:
    """A student and where it is from.

    Attributes:
        student: The student.
        origin: What each image says of it: model and version, SHA-256 of the weights, commit, run.
    """

    student: TrainedStudent
    origin: Mapping[str, str]

    def check(self, request: Request) -> None:
        """Raises InputError, a sentence, unless the student can answer."""
        check(request, self.student)

    @torch.no_grad()
    def image(self, request: Request) -> Tensor:
        """Returns an image as uint8 with shape (C, H, W), computed by itself.

        By itself and not in a batch: the bits of a matrix product depend on the number of its rows, so an image would
        depend on what else was asked for at the same time.

        Raises:
            InputError: The student cannot answer.
        """
        self.check(request)
        model, solver = self.student.model, make_solver(request.solver)
        device = next(model.parameters()).device
        label = None if request.label is None else torch.tensor([request.label], device=device)
        noise = initial_noise(1, model.shape, request.seed).to(device)
        times = grid(GRID, steps_for(solver, request.nfe))
        return to_uint8(solver.solve(guided(model, label, request.guidance), noise, times).x)[0].cpu()

    def images(self, requests: Sequence[Request]) -> Tensor:
        """Returns images as uint8 with shape (N, C, H, W), once all requests are found good."""
        for request in requests:
            self.check(request)
        return torch.stack([self.image(request) for request in requests])


def open_sampler(weights: Path, origin: Mapping[str, str]) -> Sampler:
    """Reads a student onto the GPU if there is one, else onto one thread of the CPU, whose bits are any machine's.

    Raises:
        InputError: The file is missing, damaged or no student of images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    student = load_student(weights, device)
    if student.model.shape[0] not in (1, 3):
        raise InputError(
            f"{weights} makes latents of shape {student.model.shape}, expected a student that makes images"
        )
    return Sampler(student, origin)


def load_published(folder: Path) -> Sampler:
    """Reads a published model as MLflow has fetched it: a registered one with its name and version."""
    origin = json.loads((folder / "artifacts" / "origin.json").read_text())
    registered = folder / "registered_model_meta"
    if registered.is_file():
        found = yaml.safe_load(registered.read_text())
        origin |= {"model": found["model_name"], "version": str(found["model_version"])}
    return open_sampler(folder / "artifacts" / "student.safetensors", origin)
