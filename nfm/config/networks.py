"""The sections `features`, `teacher` and `student`: networks, and how each is trained."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from nfm.config.section import Fraction, Patch, Section, Share


class Train(Section):
    """One training: AdamW, warm-up then cosine, clipping, exponential moving average."""

    steps: PositiveInt  # optimizer updates
    batch: PositiveInt  # images per update, over all processes
    lr: PositiveFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    warmup: NonNegativeInt  # updates
    final_lr: Annotated[float, Field(ge=0, le=1)]  # share of lr that the cosine ends at
    clip: PositiveFloat  # gradient norm
    ema: Share
    precision: Literal["fp32", "bf16", "fp16"]  # not "no", which YAML 1.1 reads as false
    compile: bool  # the network's repeated layers, by torch.compile
    max_skipped: PositiveInt  # updates with a loss that is not finite, in a row
    window: PositiveInt | None  # shards of the images that are mixed at a time; null: all


class Features(Section):
    """The small classifier whose penultimate layer the Fréchet distance is measured on."""

    width: PositiveInt
    seed: NonNegativeInt
    train: Train


class Teacher(Section):
    """TarFlow."""

    patch: Patch  # height and width of a token, pixels
    blocks: PositiveInt
    layers: PositiveInt
    width: PositiveInt
    head_size: PositiveInt
    conditional: bool
    label_drop: Share
    noise_std: PositiveFloat  # eta, on the scale of [-1, 1]
    train: Train


class Time(Section):
    """t = sigmoid(n), n ~ N(mean, std^2)."""

    mean: float
    std: PositiveFloat


class Student(Section):
    """SiT."""

    patch: Patch
    depth: PositiveInt
    width: PositiveInt
    head_size: PositiveInt
    conditional: bool
    label_drop: Share
    time: Time
    train: Train
