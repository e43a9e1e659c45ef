"""What may be asked of a student: each row of a request, checked."""

import math
from dataclasses import dataclass

from nfm.build.solve import SOLVERS, make_solver
from nfm.build.student import TrainedStudent
from nfm.errors import InputError
from nfm.solve.solvers import steps_for

MOST_NFE = 256  # beyond it no sample of a student gets better, and a server would be held up
SEEDS = 2**63


@dataclass(frozen=True)
class Request:
    """One image that is asked for; what it looks like depends on this and the weights alone.

    Attributes:
        seed: Of the noise that it starts from.
        nfe: Evaluations of the velocity.
        solver: Name of the solver.
        guidance: Weight of classifier-free guidance; 1 is none.
        label: The class; None leaves it to the noise.
    """

    seed: int
    nfe: int
    solver: str
    guidance: float
    label: int | None


def check(request: Request, student: TrainedStudent) -> None:
    """Raises InputError, a sentence, unless a student can answer a request."""
    _check_label(request, student.model.classes)
    if not 0 <= request.seed < SEEDS:
        raise InputError(f"seed is {request.seed}, expected 0 to 2^63 - 1")
    if not 1 <= request.nfe <= MOST_NFE:
        raise InputError(f"nfe is {request.nfe}, expected 1 to {MOST_NFE}")
    if request.solver not in SOLVERS:
        raise InputError(f"solver is {request.solver!r}, expected euler, heun or midpoint")
    steps_for(make_solver(request.solver), request.nfe)
    if student.one_step and (request.nfe, request.solver) != (1, "euler"):
        raise InputError(
            f"nfe is {request.nfe} with {request.solver}, but this student takes a single step: ask for nfe 1, euler"
        )
    if not math.isfinite(request.guidance) or abs(request.guidance) > 100:
        raise InputError(f"guidance is {request.guidance}, expected a number from -100 to 100, 1 for none")
    if request.label is None and request.guidance != 1:
        raise InputError(f"guidance is {request.guidance:g} without a label to guide to; give a label, or guidance 1")


def _check_label(request: Request, classes: int | None) -> None:
    if request.label is None:
        return
    if classes is None:
        raise InputError(f"label is {request.label}, but this student knows no classes; leave the label out")
    if not 0 <= request.label < classes:
        raise InputError(f"label is {request.label}, expected 0 to {classes - 1}, or none for any class")
