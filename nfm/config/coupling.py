"""The section `coupling`: a section for each coupling, by kind."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from nfm.config.section import Section


class IndependentCoupling(Section):
    """Noise drawn without a look at the data: plain flow matching."""

    kind: Literal["independent"]


class MinibatchOTCoupling(Section):
    """Noise permuted inside a batch by the exact assignment."""

    kind: Literal["minibatch-ot"]
    across_classes: bool
    whole_batch: bool  # over the batch of an update, and not only the part of it in one forward pass


class SemidiscreteOTCoupling(Section):
    """Noise sent to a training image by one fitted potential per image."""

    kind: Literal["semidiscrete-ot"]
    across_classes: bool
    steps: PositiveInt
    batch: PositiveInt  # noise draws per step
    lr: PositiveFloat


class Gate(Section):
    """What the card of a teacher's coupling may show; outside it the stage fails, unless allowed."""

    c2st: Annotated[float, Field(gt=0.5, le=1)]  # accuracy of telling z from N(0, I), overall and in each class
    eigenvalues: tuple[PositiveFloat, PositiveFloat]  # of the covariance, smallest and largest
    mean_drift: PositiveFloat  # of a class's mean from that of all, per dimension
    variance_drift: PositiveFloat  # the same of its variance
    round_trip: PositiveFloat  # largest |decode(encode(x)) - x|, on the scale of [-1, 1]
    allow: bool  # whether a coupling outside it is used all the same

    @model_validator(mode="after")
    def _check(self) -> "Gate":
        low, high = self.eigenvalues
        if low >= high:
            raise ValueError(f"eigenvalues is {[low, high]}, expected the smallest first; N(0, I) has 1 and 1")
        return self


class Redraw(Section):
    """A share of pairs near the data whose noise is drawn anew."""

    share: Annotated[float, Field(ge=0, le=1)]
    below: Annotated[float, Field(gt=0, le=1)]  # time t from which on there are none


class TeacherCoupling(Section):
    """Noise read off a trained teacher (NFM)."""

    kind: Literal["teacher"]
    draws: PositiveInt | Literal["online"]  # stored noised copies of each image, or fresh ones
    shard_mb: PositiveFloat  # size of a file of noise, and of what is encoded at a time by itself
    precision: Literal["fp32", "bf16"]  # of the teacher's matrix products while it encodes
    redraw: Redraw
    gate: Gate


class InverseRegressionCoupling(Section):
    """The pairs of `coupling.teacher`, for a student that regresses data from noise in one step."""

    kind: Literal["inverse-regression"]


CouplingSection = Annotated[
    IndependentCoupling | MinibatchOTCoupling | SemidiscreteOTCoupling | TeacherCoupling | InverseRegressionCoupling,
    Field(discriminator="kind"),
]


FROM_DATA = ("independent", "minibatch-ot", "semidiscrete-ot")  # kinds that need no teacher
