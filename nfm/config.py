"""params.yaml as frozen, typed sections; every key is stated in the file and no other is accepted.

A section has no defaults: what a stage depends on stands in params.yaml, where DVC sees it change.
"""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from nfm.errors import InputError
from nfm.validation import sentences

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
# Share of the training images to measure on instead of the test images, which are then left out; null: the test images.
Validation = Fraction | None
Limit = PositiveInt | None  # images of each split at most, a random choice; null: all
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
Patch = tuple[PositiveInt, PositiveInt]
Deployment = Annotated[str, Field(min_length=1)]  # of the flow nfm-stages, by its name


# No key may be called one of these: DVC leaves keys of these names, at any depth, out of what its run-cache knows a run
# by, and would restore the outputs of another value.
HIDDEN = ("size", "nfiles")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NAMES = "expected letters, digits, - and _, first no - or _, and neither 'size' nor 'nfiles'"


class Section(BaseModel):
    """A part of params.yaml: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, mapping: Any) -> Any:
        if not isinstance(mapping, dict):
            return mapping
        for key in mapping:
            if key not in cls.model_fields:
                raise ValueError(f"{key!r} is not a key{nearest(str(key), cls.model_fields)}")
        # YAML knows lists only; strict validation wants tuples.
        return {k: tuple(v) if isinstance(v, list) else v for k, v in mapping.items()}


class DigitsData(Section):
    """The 8x8 handwritten digits that scikit-learn ships."""

    kind: Literal["digits"]
    test_fraction: Fraction
    validation: Validation
    seed: NonNegativeInt


class MnistData(Section):
    """The four MNIST files in a folder: 28x28, padded to 32x32, or that averaged down to 16x16."""

    kind: Literal["mnist"]
    folder: str
    image_size: Literal[16, 28, 32]
    download: bool
    validation: Validation
    seed: NonNegativeInt


class Cifar10Data(Section):
    """CIFAR-10, 32x32 in colour, from its python archive."""

    kind: Literal["cifar10"]
    archive: str  # path or s3://bucket/key of cifar-10-python.tar.gz
    flips: bool  # whether each training image is also there mirrored
    validation: Validation
    seed: NonNegativeInt


class ImagenetData(Section):
    """ImageNet, in colour; a folder has class sub-folders or tar shards, or is an s3:// prefix of either."""

    kind: Literal["imagenet"]
    train: str
    test: str
    image_size: PositiveInt  # pixels
    filter: Filter
    limit: Limit
    flips: bool
    validation: Validation
    seed: NonNegativeInt


class FolderData(Section):
    """Images of one's own: a folder with one sub-folder per class or with tar shards, or an s3:// prefix of either."""

    kind: Literal["folder"]
    folder: str
    image_size: PositiveInt
    channels: Literal[1, 3]
    filter: Filter
    test_fraction: Fraction
    limit: Limit
    flips: bool
    validation: Validation
    seed: NonNegativeInt


class LatentsData(Section):
    """Images of another section, each encoded once by a frozen autoencoder; the flows learn its latents."""

    kind: Literal["latents"]
    images: Annotated[Cifar10Data | ImagenetData | FolderData, Field(discriminator="kind")]
    autoencoder: str  # folder of diffusers' AutoencoderKL
    channels: PositiveInt  # of a latent
    factor: PositiveInt  # pixels along the side of what a place of a latent stands for
    scale: PositiveFloat  # latents are scale * (mean - shift)
    shift: float
    keep: PositiveInt  # images of each split whose pixels are kept, for the features and the reference


DataSection = Annotated[
    DigitsData | MnistData | Cifar10Data | ImagenetData | FolderData | LatentsData,
    Field(discriminator="kind"),
]


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
    max_skipped: PositiveInt  # updates with a loss that is not finite, in a row


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


class IndependentCoupling(Section):
    """Noise drawn without a look at the data: plain flow matching."""

    kind: Literal["independent"]


class MinibatchOTCoupling(Section):
    """Noise permuted inside a batch by the exact assignment."""

    kind: Literal["minibatch-ot"]
    across_classes: bool


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


class Evaluate(Section):
    """What is sampled and measured; noise and labels are shared by all couplings and seeds."""

    samples: Annotated[int, Field(ge=10)]
    seed: NonNegativeInt
    guidance: NonNegativeFloat  # 1 is the plain conditional velocity
    grid: Literal["t2", "uniform"]
    euler: tuple[PositiveInt, ...]  # NFE
    heun: tuple[PositiveInt, ...]  # NFE, odd
    curvature_steps: PositiveInt
    inception: Inception | None  # then FD is FID

    @model_validator(mode="after")
    def _check(self) -> "Evaluate":
        even = [nfe for nfe in self.heun if nfe % 2 == 0]
        if even:
            raise ValueError(f"heun holds NFE {even[0]}, expected odd numbers; N steps cost 2N - 1 evaluations")
        if not self.euler and not self.heun:
            raise ValueError("euler and heun are both empty, expected at least one NFE")
        return self


class FanOut(Section):
    """How the flow shares out the encoding of a teacher's coupling."""

    tasks: PositiveInt  # 1: the stage encodes by itself
    runner: Literal["threads", "dask", "ray"]  # what runs them, some at once
    address: str | None  # of a running Dask or Ray cluster; null for one of the flow's own


class Run(Section):
    """How stages run on this machine; changes no result and reruns nothing."""

    checkpoint_every: NonNegativeInt  # updates between checkpoints, 0 for none
    log_every: PositiveInt  # updates between lines and logged metrics
    micro_batch: PositiveInt | None  # images per process and forward pass; null for all at once
    sample_batch: PositiveInt  # images sampled or encoded at once
    fan_out: FanOut


class Params(Section):
    """The whole of params.yaml."""

    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    couplings: Annotated[tuple[str, ...], Field(min_length=1)]
    # The next two follow from the kinds of those couplings, which DVC cannot tell; see `following`.
    from_data: tuple[str, ...]  # those that are made from the data alone
    one_step: tuple[str, ...]  # those whose students take one step
    data: DataSection
    features: Features
    teacher: Teacher
    coupling: dict[str, CouplingSection]
    student: Student
    evaluate: Evaluate
    run: Run
    infra: dict[str, Deployment]  # where stages run that do not run here; changes no result and reruns nothing

    @model_validator(mode="after")
    def _check(self) -> "Params":
        for name in self.coupling:
            if not NAME.fullmatch(name) or name in HIDDEN:
                raise ValueError(f"coupling has a section {name!r}, which becomes part of commands and paths; {NAMES}")
        for name in self.couplings:
            if name not in self.coupling:
                hint = nearest(name, self.coupling)
                raise ValueError(f"couplings names {name!r}, which has no section{hint}")
        kinds = {name: self.coupling[name].kind for name in self.couplings}
        for key, wanted in following(kinds).items():
            if (found := list(getattr(self, key))) != wanted:
                raise ValueError(f"{key} is {found}, expected {wanted}, the couplings of such a kind")
        if self.one_step and "teacher" not in self.couplings:
            raise ValueError(f"couplings names {self.one_step[0]!r} without 'teacher', whose pairs it learns; add it")
        for key in ("seeds", "couplings"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} is {list(values)}, expected each value once")
        return self


def following(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the lists that follow from the couplings, by key, given the kind of each coupling."""
    return {
        "from_data": [name for name, kind in kinds.items() if kind in FROM_DATA],
        "one_step": [name for name, kind in kinds.items() if kind == "inverse-regression"],
    }


def nearest(word: str, known: Any) -> str:
    """Returns a hint that names the nearest known word, or all of them if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def load_params(path: Path) -> Params:
    """Reads and checks a params file.

    Raises:
        InputError: The file is missing, is not YAML, or holds a wrong key or value.
    """
    return parse_params(read_mapping(path), str(path.name))


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping, unchecked beyond that."""
    if not path.is_file():
        raise InputError(
            f"{path.name} is not in {path.parent.resolve()}; run from the project's folder, "
            "or write one with `python -m nfm recipe digits`"
        )
    try:
        mapping = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        raise InputError(f"{path.name} holds a {type(mapping).__name__}, expected sections")
    return mapping


def parse_params(mapping: dict[str, Any], origin: str) -> Params:
    """Checks a mapping against the typed sections.

    Arguments:
        mapping: What a params file holds.
        origin: Name of the file, for the message.

    Raises:
        InputError: Names the first wrong key, what came and what was wanted.
    """
    try:
        return Params.model_validate(mapping)
    except ValidationError as error:
        first, *others = sentences(error, mapping)
        more = f" ({len(others)} more after it)" if others else ""
        raise InputError(f"{origin}: {first}{more}") from error


def with_overrides(mapping: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a params mapping with dotted keys set.

    Other couplings bring the lists that follow from them along, unless the overrides say those too.

    Arguments:
        mapping: What a params file holds.
        overrides: New values by dotted key, such as {"student.train.steps": 100}.

    Raises:
        InputError: A key is not in the mapping; the nearest right one is named.
    """
    copy = json.loads(json.dumps(mapping))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = copy
        for parent in parents:
            node = _child(node, parent, key)
        if parents != ["infra"]:  # whose keys are the stages of dvc.yaml, which the flow knows
            _child(node, last, key)
        node[last] = value
    if isinstance(names := overrides.get("couplings"), list | tuple):
        sections = copy.get("coupling", {})
        kinds = {name: sections[name].get("kind") for name in names if name in sections}
        copy |= {key: value for key, value in following(kinds).items() if key not in overrides}
    return copy


def _child(node: Any, name: str, key: str) -> Any:
    if not isinstance(node, dict) or name not in node:
        known = node if isinstance(node, dict) else []
        hint = nearest(name, known) if known else "; it goes deeper than the params do"
        raise InputError(f"override {key!r} is no key of the params: {name!r} is unknown{hint}")
    return node[name]
