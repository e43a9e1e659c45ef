"""The networks of a params file, on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from nfm.build.features import features_arguments, make_features
from nfm.build.student import make_student, student_arguments
from nfm.build.teacher import make_teacher, teacher_arguments
from nfm.config import Params
from nfm.errors import InputError
from nfm.metrics.features import Classifier
from nfm.plan.count import on_meta
from nfm.plan.size import Size
from nfm.student.velocity import SiT
from nfm.teacher.tarflow import TarFlow


@dataclass(frozen=True)
class Networks:
    """The networks that are trained, and the frozen one of latents, with shapes and without memory.

    Attributes:
        features: The classifier whose features are measured on.
        teacher: The normalizing flow.
        student: The velocity.
        autoencoder: Between pixels and latents, diffusers' AutoencoderKL; None for images.
    """

    features: Classifier
    teacher: TarFlow
    student: SiT
    autoencoder: nn.Module | None


def make_networks(params: Params, size: Size) -> Networks:
    """Builds the networks as the stages do.

    Raises:
        InputError: A section does not fit the data set; latents without the package diffusers.
    """
    shape, classes = size.shape, size.classes
    features = features_arguments(params.features, size.image, classes)
    teacher = teacher_arguments(params.teacher, shape, classes)
    student = student_arguments(params.student, shape, classes)
    return Networks(
        on_meta(lambda: make_features(features)),
        on_meta(lambda: make_teacher(teacher)),
        on_meta(lambda: make_student(student)),
        None if size.autoencoder is None else on_meta(autoencoder_maker(size.autoencoder)),
    )


def autoencoder_maker(config: dict[str, Any]) -> Callable[[], nn.Module]:
    """Returns what builds an AutoencoderKL, with random weights, from its configuration.

    Raises:
        InputError: The package diffusers is not installed, or does not know such an autoencoder.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # takes seconds to import
    except ImportError as error:
        raise InputError("latents need the package diffusers, which is not installed; install nfm[latents]") from error

    def make() -> nn.Module:
        try:
            return AutoencoderKL.from_config(config)  # pyright: ignore
        except (TypeError, ValueError) as error:
            raise InputError(
                f"data.autoencoder has a config.json that diffusers refuses: {' '.join(str(error).split())[:200]}"
            ) from error

    return make
