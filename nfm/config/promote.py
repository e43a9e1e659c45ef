"""The section `promote`: when a retrained student becomes champion."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from nfm.config.section import Section, Share


class Guards(Section):
    """What a challenger is refused for, however good its samples are."""

    card: bool  # whether its coupling's card has to be inside `coupling.teacher.gate`
    accuracy_drop: Annotated[float, Field(ge=0, le=1)]  # of its samples, and of the classifier on held-out images
    memorisation: Annotated[float, Field(gt=0.5, le=1)]  # how often a sample is nearer to the training images
    seconds: PositiveFloat | None  # that its teacher, coupling and student may take to make


class Promote(Section):
    """How challenger and champion are compared; no stage reads it."""

    coupling: str  # whose student stands for a run
    seed: NonNegativeInt  # of its training
    solver: Literal["euler", "heun"]
    nfe: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    evaluations: Annotated[int, Field(ge=3)]  # each with noise and labels of its own, shared by both
    samples: Annotated[int, Field(ge=10)]  # of each evaluation and NFE
    margin: Share  # of the champion's FD that the challenger's has to be lower by
    alpha: Annotated[float, Field(gt=0, le=0.5)]  # of the one-sided paired test
    guards: Guards
    drift: PositiveFloat | None  # FD of the new training images to the old ones from which on a retraining stops

    @model_validator(mode="after")
    def _check(self) -> "Promote":
        even = [nfe for nfe in self.nfe if nfe % 2 == 0]
        if self.solver == "heun" and even:
            raise ValueError(f"nfe holds {even[0]}, expected odd numbers for heun; N steps cost 2N - 1 evaluations")
        return self
