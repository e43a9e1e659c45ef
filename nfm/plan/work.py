"""What each stage computes: which network runs, how often, on how many images at once, in which precision."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nfm.build.draws import ONLINE_DRAWS, ONLINE_IMAGES
from nfm.build.measure import BATCH
from nfm.config import (
    CouplingSection,
    InverseRegressionCoupling,
    Params,
    SemidiscreteOTCoupling,
    TeacherCoupling,
    Train,
)
from nfm.coupling.semidiscrete_ot import CHECKS
from nfm.data.autoencoder import BATCH as PIXEL_BATCH
from nfm.metrics.features import TURNS
from nfm.plan import count
from nfm.plan.count import Cost
from nfm.plan.gpu import Gpu
from nfm.plan.networks import Networks
from nfm.plan.size import Size
from nfm.stages.evaluate import CURVED, PATH_STEPS, PATHS

FULL = "fp32"
INCEPTION = Cost(flops=11_400_000_000, operations=300)  # an image of 299x299; Szegedy et al. 2015, arXiv 1512.00567
LAUNCH = 1.0e-5  # seconds that eager torch takes to launch an operation, however small; a round figure
ROUND_TRIP = 200  # images that the coupling encodes and decodes


@dataclass(frozen=True)
class Work:
    """One call that a stage makes again and again.

    Attributes:
        unit: What is called, after the slash with how many images; equal units cost the same time.
        count: How often, in one run of the stage.
        flops: Of one call, by precision.
        operations: Launched one by one in one call.
        moved: Bytes that one call moves through the device's memory; 0 where that is never the limit.
    """

    unit: str
    count: float
    flops: Mapping[str, float]
    operations: float = 0.0
    moved: float = 0.0

    def seconds(self, gpu: Gpu, utilisation: float) -> float:
        """Returns the time on a GPU: that of arithmetic at a share of its peak, of memory, or of launches."""
        arithmetic = sum(flops / gpu.peak(precision) for precision, flops in self.flops.items()) / utilisation
        return self.count * max(arithmetic, self.moved / gpu.bandwidth, self.operations * LAUNCH)


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml, all of whose runs are alike.

    Attributes:
        name: Its name, with the coupling where that makes a difference.
        runs: How many there are: seeds, or seeds times couplings.
        work: What one of them does.
    """

    name: str
    runs: int
    work: tuple[Work, ...]

    @property
    def flops(self) -> float:
        """FLOPs of all runs, in all precisions."""
        return self.runs * sum(work.count * sum(work.flops.values()) for work in self.work)

    def seconds(self, gpu: Gpu, utilisation: float) -> float:
        """Returns the time of all runs on one GPU, seconds."""
        return self.runs * sum(work.seconds(gpu, utilisation) for work in self.work)

    def measured(self, seconds: Mapping[str, float]) -> float:
        """Returns the time of all runs where each unit takes the seconds that were measured."""
        return self.runs * sum(work.count * seconds[work.unit] for work in self.work)


def stages(params: Params, size: Size, networks: Networks) -> list[Stage]:
    """Lists the stages that compute, in the order of dvc.yaml."""
    seeds, couplings = len(params.seeds), params.couplings
    found = [
        *([Stage("prepare", 1, (_pixels(size, networks, size.train + size.test, decode=False),))] if size.kept else []),
        Stage("features", 1, tuple(_features(params, size, networks))),
        Stage("reference", 1, tuple(_reference(params, size, networks))),
        Stage("teacher", seeds, (_teacher(params, networks),)),
    ]
    for name, section in params.coupling.items():
        if isinstance(section, SemidiscreteOTCoupling) and name in couplings:
            found.append(Stage(f"couple@{name}", seeds, (_potentials(section, size),)))
        elif isinstance(section, TeacherCoupling):
            found.append(Stage("couple-teacher", seeds, tuple(_draws(section, params, size, networks))))
    walking = len(couplings) - len(params.one_step)
    found += [Stage(f"student@{name}", seeds, (_student(name, params, size, networks),)) for name in couplings]
    found.append(Stage("evaluate", seeds * walking, tuple(_evaluate(params, size, networks))))
    for name in params.one_step:
        found.append(Stage(f"evaluate@{name}", seeds, tuple(_evaluate(params, size, networks, one_step=True))))
    found.append(Stage("evaluate-teacher", seeds, tuple(_evaluate_teacher(params, size, networks))))
    return found


def _features(params: Params, size: Size, networks: Networks) -> Iterator[Work]:
    train, classifier = params.features.train, networks.features
    step, forward = count.classifier_step_cost(classifier, size.image), count.classify_cost(classifier, size.image)
    yield _updates("features.update", train, params, {train.precision: step})
    yield _calls("features.forward", BATCH, (1 if size.classes else TURNS) * size.visible(size.test), forward)


def _reference(params: Params, size: Size, networks: Networks) -> Iterator[Work]:
    yield _extraction(params, size, networks, size.visible(size.train) + size.visible(size.test))


def _teacher(params: Params, networks: Networks) -> Work:
    train = params.teacher.train
    step = count.likelihood_step_cost(networks.teacher)
    return _updates("teacher.update", train, params, {train.precision: step})


def _potentials(section: SemidiscreteOTCoupling, size: Size) -> Work:
    groups = 1 if section.across_classes else max(1, size.classes)
    images = size.train / groups
    checks = math.ceil(min(CHECKS * images, section.steps * section.batch) / section.batch)
    flops = 2 * section.batch * images * size.dimensions
    return Work("potentials.visit", groups * (section.steps + checks), {FULL: flops}, operations=8)


def _draws(section: TeacherCoupling, params: Params, size: Size, networks: Networks) -> Iterator[Work]:
    draws, images = section.draws, size.train
    if draws == "online":
        draws, images = ONLINE_DRAWS, min(images, ONLINE_IMAGES)
    batch, back = draws * max(1, params.run.sample_batch // draws), min(ROUND_TRIP, size.train)
    yield _calls("teacher.encode", batch, images * draws + back, count.encode_cost(networks.teacher), section.precision)
    yield _decoding(networks, back, back)
    yield Work("card", 1, {})


def _student(name: str, params: Params, size: Size, networks: Networks) -> Work:
    train, section = params.student.train, pairs_of(name, params)
    costs = [(train.precision, count.matching_step_cost(networks.student))]
    if isinstance(section, SemidiscreteOTCoupling):
        groups = 1 if section.across_classes else max(1, size.classes)
        seen = min(groups, train.batch)
        costs.append((FULL, Cost(2 * size.train // groups * size.dimensions, 8 * seen)))
    elif isinstance(section, TeacherCoupling) and section.draws == "online":
        costs.append((section.precision, count.encode_cost(networks.teacher)))
    together: dict[str, Cost] = {}
    for precision, cost in costs:
        before = together.get(precision, Cost(0, 0))
        together[precision] = Cost(before.flops + cost.flops, before.operations + cost.operations)
    return _updates(f"student.update@{name}", train, params, together)


def pairs_of(name: str, params: Params) -> CouplingSection:
    """Returns the section of the coupling whose pairs a student trains on: inverse regression takes the teacher's."""
    section = params.coupling[name]
    return params.coupling["teacher"] if isinstance(section, InverseRegressionCoupling) else section


def _evaluate(params: Params, size: Size, networks: Networks, *, one_step: bool = False) -> Iterator[Work]:
    section, student = params.evaluate, networks.student
    labelled = student.classes is not None
    cost = count.velocity_cost(student)
    if labelled and section.guidance not in (0, 1):
        cost = Cost(2 * cost.flops, cost.operations)
    settings = (1,) if one_step else (*section.euler, *section.heun)
    batch, curved, paths = (min(most, section.samples) for most in (params.run.sample_batch, CURVED, PATHS))
    yield _calls("student.velocity", batch, section.samples * sum(settings), cost)
    if not one_step:
        yield _calls("student.velocity", curved, curved * section.curvature_steps, cost)
        yield _calls("student.velocity", paths, paths * PATH_STEPS, cost)
    yield from _fidelity(params, size, networks, len(settings), labelled=labelled)


def _evaluate_teacher(params: Params, size: Size, networks: Networks) -> Iterator[Work]:
    section, teacher = params.evaluate, networks.teacher
    batch = min(params.run.sample_batch, section.samples)
    yield _decoding(networks, batch, section.samples)
    yield _calls("teacher.denoise", batch, section.samples, count.denoise_cost(teacher))
    yield _calls("teacher.likelihood", min(batch, size.test), size.test, count.encode_cost(teacher))
    yield from _fidelity(params, size, networks, 2, labelled=teacher.classes is not None)


def _fidelity(params: Params, size: Size, networks: Networks, sets: int, *, labelled: bool) -> Iterator[Work]:
    """Measures some sets of samples against the references."""
    samples = sets * params.evaluate.samples
    if size.kept:
        yield _pixels(size, networks, samples, decode=True)
    yield _extraction(params, size, networks, samples)
    if labelled:
        yield _calls("features.forward", BATCH, samples, count.classify_cost(networks.features, size.image))
    yield Work("fidelity/samples", sets, {})
    yield Work("picture", 1, {})


def _extraction(params: Params, size: Size, networks: Networks, images: int) -> Work:
    """Computes the features that distances are measured on."""
    if params.evaluate.inception is not None:
        return _calls("inception.forward", BATCH, images, INCEPTION)
    return _calls("features.forward", BATCH, images, count.features_cost(networks.features, size.image))


def _pixels(size: Size, networks: Networks, images: int, *, decode: bool) -> Work:
    """Turns pixels into latents, or latents into pixels."""
    assert networks.autoencoder is not None
    cost = count.pixels_cost(networks.autoencoder, size.shape if decode else size.image, decode=decode)
    return _calls(f"autoencoder.{'decode' if decode else 'encode'}", PIXEL_BATCH, images, cost)


def _updates(unit: str, train: Train, params: Params, costs: Mapping[str, Cost]) -> Work:
    """Trains: every update makes a call for each piece of its batch."""
    pieces = math.ceil(train.batch / (params.run.micro_batch or train.batch))
    operations = pieces * sum(cost.operations for cost in costs.values())
    flops = {precision: float(train.batch * cost.flops) for precision, cost in costs.items()}
    return Work(f"{unit}/{train.batch}", train.steps, flops, operations)


def _calls(unit: str, batch: int, images: float, cost: Cost, precision: str = FULL) -> Work:
    """Runs a network over images in batches."""
    return Work(f"{unit}/{batch}", images / batch, {precision: float(batch * cost.flops)}, cost.operations)


def _decoding(networks: Networks, batch: int, images: int) -> Work:
    """Decodes: every pass reads a block's weights, and reads and copies the keys and values so far, then reads them."""
    teacher, block = networks.teacher, count.first_block(networks.teacher)
    cost, passes = count.decode_cost(teacher), count.decode_passes(teacher)
    values = 2 * len(block.layers) * block.project.out_features * len(block.position) / 2  # on average over the tokens
    moved = passes * (count.weight_bytes(block) + 3 * 4 * batch * values)
    return Work(f"teacher.decode/{batch}", images / batch, {FULL: float(batch * cost.flops)}, cost.operations, moved)
