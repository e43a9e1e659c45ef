"""Bytes of what the stages write, and whether the teacher's draws should be stored."""

import math
from dataclasses import dataclass
from typing import Literal

from nfm.config import Params, SemidiscreteOTCoupling, TeacherCoupling
from nfm.metrics.features import FEATURES
from nfm.metrics.statistics import KEPT
from nfm.plan import count
from nfm.plan.networks import Networks
from nfm.plan.size import Size
from nfm.plan.work import pairs_of
from nfm.stages.evaluate import PATH_STEPS, PATHS, SHOWN

USUAL = 16  # draws: on digits as good as fresh ones, as four nearly are and a single one is not (docs/results.md)
HALF = 2  # bytes of a float16
INCEPTION_FEATURES = 2048


@dataclass(frozen=True)
class Artifact:
    """Files that a stage writes; pictures and JSON, which are small, are not counted.

    Attributes:
        path: Below the project's folder; S is a seed, C a coupling.
        bytes: Of one copy.
        copies: How many there are.
        kept: Whether it outlives its stage.
    """

    path: str
    bytes: int
    copies: int
    kept: bool = True


@dataclass(frozen=True)
class Draws:
    """Stored against online draws of the teacher's coupling, one seed.

    Attributes:
        stored_bytes: By number of draws per image, as float16.
        stored_encodes: Images encoded to store them, likewise.
        online_encodes: Images encoded while one student trains on fresh draws.
        recommended: A number of draws, or "online".
        reason: Why, and when not, one sentence.
    """

    stored_bytes: dict[int, int]
    stored_encodes: dict[int, int]
    online_encodes: int
    recommended: int | Literal["online"]
    reason: str


def artifacts(params: Params, size: Size, networks: Networks) -> list[Artifact]:
    """Lists what the stages write."""
    seeds, labels = len(params.seeds), 8 if size.classes else 0
    students = seeds * len(params.couplings)
    features, teacher, student = map(count.weight_bytes, (networks.features, networks.teacher, networks.student))
    settings = len(params.evaluate.euler) + len(params.evaluate.heun)
    shown = min(SHOWN, size.classes or SHOWN) * math.prod(size.image)
    decoder = 0 if networks.autoencoder is None else count.weight_bytes(networks.autoencoder)
    found = [
        *(
            Artifact(f"artifacts/data/{split}", decoder + _data(size, images, labels), 1)
            for split, images in (("train", size.train), ("test", size.test))
        ),
        Artifact("artifacts/features/features.safetensors", features, 1),
        *(
            Artifact(f"artifacts/reference/{split}.safetensors", _reference(params, size.visible(images), labels), 1)
            for split, images in (("train", size.train), ("test", size.test))
        ),
        *([Artifact("artifacts/reference/autoencoder.safetensors", decoder, 1)] if decoder else []),
        Artifact("artifacts/teacher/S/teacher.safetensors", teacher, seeds),
    ]
    for name in params.coupling:
        if name not in params.couplings and name != "teacher":
            continue  # no stage prepares it
        section = pairs_of(name, params)
        if isinstance(section, SemidiscreteOTCoupling):
            found.append(Artifact(f"artifacts/coupling/{name}-S", 4 * size.train, seeds))
        elif isinstance(section, TeacherCoupling) and section.draws != "online":
            found.append(Artifact(f"artifacts/coupling/{name}-S", pair_bytes(size, section.draws), seeds))
        elif isinstance(section, TeacherCoupling):
            found.append(Artifact(f"artifacts/coupling/{name}-S", teacher, seeds))
    paths = 2 * 4 * min(PATHS, params.evaluate.samples) * (PATH_STEPS + 1)
    found += [
        Artifact("artifacts/student/C-S/student.safetensors", student, students),
        Artifact("artifacts/evaluate/C-S/samples.safetensors", settings * shown + paths, students),
        Artifact("artifacts/evaluate/samples-of-teacher-S/samples.safetensors", 2 * shown, seeds),
        # Weights, their average, and AdamW's two moments.
        Artifact(".checkpoints/teacher@S", 4 * teacher, 1, kept=False),
        Artifact(".checkpoints/student@C-S", 4 * student, 1, kept=False),
    ]
    return found


def _data(size: Size, images: int, labels: int) -> int:
    """Returns the bytes of a split without what decodes its latents."""
    pixels = math.prod(size.image) * size.visible(images)
    return labels * images + pixels + (HALF * size.dimensions * images if size.kept else 0)


def _reference(params: Params, images: int, labels: int) -> int:
    """Returns the bytes of a split's statistics: mean and covariance in float64, some features, labels."""
    width = FEATURES if params.evaluate.inception is None else INCEPTION_FEATURES
    return 8 * (width + width**2) + 4 * width * min(images, KEPT) + labels * images


def pair_bytes(size: Size, draws: int) -> int:
    """Returns the bytes of stored draws for all training images."""
    return size.train * draws * size.dimensions * HALF


def advise(params: Params, size: Size, disk: float) -> Draws | None:
    """Weighs stored against online draws; None without a teacher's coupling.

    To store K draws of N images takes N K encodes once; online draws take one for every image of every update. So
    storing pays where it fits on the disk and N K is less than steps x batch.

    Arguments:
        params: All params.
        size: Of the data set.
        disk: Bytes that one seed's pairs may take.
    """
    sections = [section for section in params.coupling.values() if isinstance(section, TeacherCoupling)]
    if not sections:
        return None
    own = sections[0].draws
    numbers = sorted({USUAL, own} if isinstance(own, int) else {USUAL})
    stored = {k: pair_bytes(size, k) for k in numbers}
    encodes = {k: size.train * k for k in numbers}
    online = params.student.train.steps * params.student.train.batch
    number = own if isinstance(own, int) else USUAL
    return Draws(stored, encodes, online, *_choice(number, stored[number], encodes[number], online, disk))


def _choice(draws: int, stored: int, encodes: int, online: int, disk: float) -> tuple[int | Literal["online"], str]:
    if encodes >= online:
        return "online", (
            f"a student sees {online:,} images, and to store {draws} draws takes {encodes:,} encodes: "
            "store them where many students train on the same pairs"
        )
    if stored > disk:
        return "online", (
            f"{draws} stored draws take {stored / 1e9:,.0f} GB, more than the {disk / 1e9:,.0f} GB of --disk: "
            f"store them where that much is free, for {online / encodes:.1f} times fewer encodes"
        )
    return draws, (
        f"they fit into the {disk / 1e9:,.0f} GB of --disk and take {online / encodes:.1f} times fewer encodes: "
        "take online draws where the disk matters more than the time; on digits students of either are alike"
    )
