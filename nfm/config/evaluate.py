"""The section `evaluate`."""

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from nfm.config.section import Section

INCEPTION = "inputs/inception.pth"  # where `python -m nfm fetch` puts Inception's weights


class Inception(Section):
    """torch-fidelity's Inception weights, on whose features the Fréchet distance is FID."""

    source: str  # path or URL that `python -m nfm fetch` brings the file from
    sha256: str

    @field_validator("sha256")
    @classmethod
    def _check(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"it is {value!r}, expected 64 hexadecimal digits, lower case")
        return value


class Decode(Section):
    """How the teacher's samples are decoded."""

    chunk: PositiveInt  # tokens solved for at once; 1: one after the other
    tolerance: NonNegativeFloat  # a chunk's sweeps end where no number changes by more


class Evaluate(Section):
    """What is sampled and measured; noise and labels are shared by all couplings and seeds."""

    samples: Annotated[int, Field(ge=10)]
    seed: NonNegativeInt
    guidance: NonNegativeFloat  # 1 is the plain conditional velocity
    grid: Literal["t2", "uniform"]
    euler: tuple[PositiveInt, ...]  # NFE
    heun: tuple[PositiveInt, ...]  # NFE, odd
    curvature_steps: PositiveInt
    precision: Literal["fp32", "bf16"]  # of the student's network while sampling
    compile: bool  # that network, by torch.compile
    decode: Decode
    inception: Inception | None  # then FD is FID

    @model_validator(mode="after")
    def _check(self) -> "Evaluate":
        even = [nfe for nfe in self.heun if nfe % 2 == 0]
        if even:
            raise ValueError(f"heun holds NFE {even[0]}, expected odd numbers; N steps cost 2N - 1 evaluations")
        if not self.euler and not self.heun:
            raise ValueError("euler and heun are both empty, expected at least one NFE")
        return self
