"""The three networks of a params file, on the meta device."""

from dataclasses import dataclass

from nfm.build.features import features_arguments, make_features
from nfm.build.student import make_student, student_arguments
from nfm.build.teacher import make_teacher, teacher_arguments
from nfm.config import Params
from nfm.metrics.features import Classifier
from nfm.plan.count import on_meta
from nfm.plan.size import Size
from nfm.student.velocity import SiT
from nfm.teacher.tarflow import TarFlow


@dataclass(frozen=True)
class Networks:
    """The networks that are trained, with shapes and without memory."""

    features: Classifier
    teacher: TarFlow
    student: SiT


def make_networks(params: Params, size: Size) -> Networks:
    """Builds the networks as the stages do.

    Raises:
        InputError: A section does not fit the data set.
    """
    shape, classes = size.shape, size.classes
    features = features_arguments(params.features, size.image, classes)
    teacher = teacher_arguments(params.teacher, shape, classes)
    student = student_arguments(params.student, shape, classes)
    return Networks(
        on_meta(lambda: make_features(features)),
        on_meta(lambda: make_teacher(teacher)),
        on_meta(lambda: make_student(student)),
    )
