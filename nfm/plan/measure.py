"""How long the units of work take on this machine, by doing each for a second or two at the params' own sizes."""

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from nfm.build.draws import ONLINE_DRAWS, ONLINE_IMAGES
from nfm.build.features import features_arguments, make_features
from nfm.build.student import make_student, student_arguments
from nfm.build.teacher import make_teacher, teacher_arguments
from nfm.build.training import make_plan
from nfm.config import (
    CouplingSection,
    IndependentCoupling,
    InverseRegressionCoupling,
    MinibatchOTCoupling,
    Params,
    SemidiscreteOTCoupling,
    TeacherCoupling,
    Train,
)
from nfm.coupling.base import Batch, Coupling
from nfm.coupling.card import looked_at
from nfm.coupling.card import measure as measure_noise
from nfm.coupling.independent import Independent
from nfm.coupling.inverse import InverseRegression
from nfm.coupling.minibatch_ot import MinibatchOT
from nfm.coupling.semidiscrete_ot import CHECKS, SemidiscreteOT, fit_potentials
from nfm.coupling.teacher import TeacherDraws, TeacherOnline, encode_draws
from nfm.data.autoencoder import Autoencoder
from nfm.data.examples import Examples, Source
from nfm.data.shards import Split
from nfm.data.writing import write_splits
from nfm.errors import InputError
from nfm.figures import draw_card, sample_grid
from nfm.metrics.features import FEATURES, classifier_loss, rotation_loss
from nfm.metrics.fidelity import classifier_extractor, extract, fidelity, frechet
from nfm.metrics.statistics import KEPT, Accumulator, Statistics
from nfm.plan.networks import autoencoder_maker
from nfm.plan.size import Shape, Size
from nfm.random import generator_for
from nfm.solve.sample import initial_noise
from nfm.stages.evaluate import SHOWN
from nfm.stages.fit import read_batch, read_piece
from nfm.store import Rows
from nfm.student.loss import one_step_loss, student_loss
from nfm.student.velocity import guided
from nfm.teacher.denoise import denoise, sample_teacher
from nfm.teacher.loss import bits_per_dim, teacher_loss
from nfm.train.loop import train

MOST_BYTES = 2**28  # of random images that stand in for the data set
SECONDS = 2.0  # spent on a unit, or on three of it if they take longer
VISITS = 10  # steps of a fit of potentials


class Bench:
    """Random images of a data set's shape, untrained networks, and the time that a unit of work takes on them.

    Arguments:
        params: All params.
        size: Of the data set; more images than fit in 256 MB are not made.
        folder: For the images, empty.
        device: Where to compute.
        seconds: To spend on each unit.
        clock: Gives the time, seconds.
    """

    def __init__(
        self,
        params: Params,
        size: Size,
        folder: Path,
        device: torch.device,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.params, self.size, self.device, self.seconds, self.clock = params, size, device, seconds, clock
        self.folder, self.split = folder, _random_split(size, size.shape, folder / "data")
        self.images = self.split if size.pixels is None else _random_split(size, size.pixels, folder / "images")
        shape, classes = size.shape, size.classes
        self.features = make_features(features_arguments(params.features, size.image, classes)).to(device)
        self.teacher = make_teacher(teacher_arguments(params.teacher, shape, classes)).to(device)
        self.frozen = copy.deepcopy(self.teacher).eval().requires_grad_(False)
        self.student = make_student(student_arguments(params.student, shape, classes)).to(device)
        self.autoencoder = None
        if size.autoencoder is not None:
            self.autoencoder = Autoencoder(autoencoder_maker(size.autoencoder)(), 1.0, 0.0, device)

    def time(self, units: set[str]) -> dict[str, float]:
        """Returns the seconds of each unit, see `nfm.plan.work`."""
        found = {}
        for unit in sorted(units):
            print(f"measuring {unit}", file=sys.stderr, flush=True)
            what, _, batch = unit.partition("/")
            kind, _, coupling = what.partition("@")
            found[unit] = self._training(kind, coupling) if kind.endswith(".update") else self._call(kind, batch)
        return found

    def _training(self, kind: str, coupling: str) -> float:
        params = self.params
        match kind:
            case "features.update":
                return self._update(self.features, self._features_loss, params.features.train, self.images)
            case "teacher.update":
                return self._update(self.teacher, self._teacher_loss, params.teacher.train, self.split)
            case "student.update":
                pairs = self._coupling(params.coupling[coupling])
                return self._update(self.student, self._student_loss(pairs), params.student.train, self.split)
        raise ValueError(f"unit is {kind!r}, which cannot be measured")

    def _call(self, kind: str, batch: str) -> float:
        match kind:
            case "fidelity":
                return self._fidelity()
            case "inception.forward":
                raise InputError("plan --measure cannot time Inception; set evaluate.inception to null for it")
            case "potentials.visit":
                return self._visit()
            case "card":
                return self._card()
            case "picture":
                return self._picture()
        noise, label = self._batch(int(batch))
        given = label if self.teacher.classes else None
        match kind:
            case "features.forward":
                extractor, pixels = classifier_extractor(self.features), self._raw(len(noise))
                return self._repeated(lambda: Accumulator().add(extract(extractor, pixels)))
            case "autoencoder.encode" | "autoencoder.decode":
                return self._pixels(noise, kind.endswith("decode"))
            case "teacher.encode":
                return self._encode(len(noise))
            case "teacher.decode":
                return self._repeated(lambda: sample_teacher(self.frozen, noise, given))
            case "teacher.denoise":
                return self._repeated(lambda: denoise(self.frozen, noise, given, 0.1))
            case "teacher.likelihood":
                return self._repeated(lambda: self._bits(noise, given))
            case "student.velocity":
                return self._velocity(noise, label)
        raise ValueError(f"unit is {kind!r}, which cannot be measured")

    def _update(self, model: nn.Module, loss: Callable[..., torch.Tensor], section: Train, split: Split) -> float:
        """Trains for some updates, first a few to see how many, and returns the mean time of one."""
        few = _training_seconds(self, model, loss, section, split, 4)
        steps = int(max(4, min(400, self.seconds / few)))
        return _training_seconds(self, model, loss, section, split, steps)

    def _features_loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if batch.label is None:
            return rotation_loss(model, batch.data, generator)
        return classifier_loss(model, batch.data, batch.label, generator)

    def _teacher_loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        section, label = self.params.teacher, batch.label if self.teacher.classes else None
        drops = {"noise_std": section.noise_std, "label_drop": section.label_drop}
        return teacher_loss(model, batch.data, label, generator, **drops)

    def _student_loss(self, coupling: Coupling) -> Callable[..., torch.Tensor]:
        section = self.params.student

        def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
            pairs, drop = coupling.pair(batch, generator), {"label_drop": section.label_drop}
            learnt = (model, pairs.data, pairs.noise, pairs.label if section.conditional else None, generator)
            if coupling.one_step:
                return one_step_loss(*learnt, **drop)
            times = {"time_mean": section.time.mean, "time_std": section.time.std}
            return student_loss(*learnt, **times, **asdict(coupling.redraw), **drop)

        return loss

    def _coupling(self, section: CouplingSection) -> Coupling:
        match section:
            case IndependentCoupling():
                return Independent()
            case MinibatchOTCoupling():
                return MinibatchOT(section.across_classes, section.whole_batch)
            case SemidiscreteOTCoupling():
                batch = read_batch(self.split, torch.arange(len(self.split)), self.device)
                potentials = torch.zeros(len(self.split), device=self.device)
                return SemidiscreteOT(batch.data, batch.label, potentials, across_classes=section.across_classes)
            case TeacherCoupling() if section.draws == "online":
                teacher, bf16 = self.params.teacher, section.precision == "bf16"
                return TeacherOnline(self.frozen, teacher.noise_std, 1.0, teacher.conditional, bf16=bf16)
            case TeacherCoupling():
                noise = torch.zeros(len(self.split), 1, *self.split.shape, dtype=torch.float16)
                return TeacherDraws(Rows.of([noise.numpy()]), 1.0)
            case InverseRegressionCoupling():
                return InverseRegression(self._coupling(self.params.coupling["teacher"]))

    def _encode(self, batch: int) -> float:
        draws, bf16 = self._draws(), any(section.precision == "bf16" for section in self._teachers())
        data, label = self._batch(batch // draws)
        given, noise_std = label if self.teacher.classes else None, self.params.teacher.noise_std

        def encode() -> object:
            z = encode_draws(self.frozen, data, given, noise_std=noise_std, draws=draws, seed=0, bf16=bf16)
            return z.double().square().sum().item(), z.cpu().numpy().astype("float16")

        return self._repeated(encode)

    def _pixels(self, latents: torch.Tensor, decode: bool) -> float:
        autoencoder, pixels = self.autoencoder, self._raw(len(latents))
        assert autoencoder is not None
        if decode:
            return self._repeated(lambda: autoencoder.decode(latents))
        return self._repeated(lambda: autoencoder.encode(pixels))

    @torch.no_grad()
    def _bits(self, noise: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        initial_noise(len(noise), self.split.shape, 0)
        return bits_per_dim(self.frozen, noise, label).cpu()

    @torch.no_grad()
    def _velocity(self, noise: torch.Tensor, label: torch.Tensor | None) -> float:
        velocity = guided(self.student, label if self.student.classes else None, self.params.evaluate.guidance)
        t = torch.full((len(noise),), 0.5, device=self.device)
        return self._repeated(lambda: velocity(noise, t))

    def _fidelity(self) -> float:
        test, train = self._statistics(self.size.test, 0), self._statistics(self.size.train, 1)
        samples = self._statistics(self.params.evaluate.samples, 2)
        return self._repeated(lambda: (fidelity(test, samples), frechet(train, samples)))

    def _statistics(self, count: int, seed: int) -> Statistics:
        accumulator = Accumulator()
        accumulator.add(torch.randn(min(count, KEPT), FEATURES, generator=generator_for(seed)))
        return accumulator.statistics()

    def _visit(self) -> float:
        (section,) = (s for s in self.params.coupling.values() if isinstance(s, SemidiscreteOTCoupling))
        batch = read_batch(self.split, torch.arange(len(self.split)), self.device)
        label = None if section.across_classes else batch.label
        groups = 1 if label is None else len(label.unique())
        checks = math.ceil(min(CHECKS * len(self.split) / groups, VISITS * section.batch) / section.batch)
        fit = {"steps": VISITS, "batch": section.batch, "lr": section.lr, "seed": 0}
        return self._repeated(lambda: fit_potentials(batch.data, label, **fit)) / (groups * (VISITS + checks))

    def _card(self) -> float:
        images, draws = looked_at(self._encoded_images(), self._draws())
        noise = torch.randn(images, draws, *self.split.shape, generator=generator_for(0))
        label = self.split.labels(torch.arange(images)) if self.teacher.classes else None

        def card() -> None:
            found = measure_noise(noise, label, self.split.classes, seed=0)
            draw_card({**found, "sigma": 1.0, "round_trip": 0.0}, self.folder / "card.png")

        return self._repeated(card, least=1)

    def _picture(self) -> float:
        settings = len(self.params.evaluate.euler) + len(self.params.evaluate.heun)
        shown = torch.randint(256, (settings, SHOWN, *self.size.image), dtype=torch.uint8)
        names = [f"euler-{nfe}" for nfe in range(settings)]
        return self._repeated(lambda: sample_grid(shown, names, [], self.folder / "samples.png"))

    def _draws(self) -> int:
        """Returns how many draws of an image are encoded before a student trains."""
        stored = self._stored_draws()
        return ONLINE_DRAWS if stored is None else stored

    def _encoded_images(self) -> int:
        """Returns how many images are."""
        return min(len(self.split), ONLINE_IMAGES) if self._stored_draws() is None else len(self.split)

    def _stored_draws(self) -> int | None:
        return next((s.draws for s in self._teachers() if isinstance(s.draws, int)), None)

    def _teachers(self) -> list[TeacherCoupling]:
        return [s for s in self.params.coupling.values() if isinstance(s, TeacherCoupling)]

    def _batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns noise and labels of some images, with shapes (B, C, H, W) and (B,)."""
        label = self.split.labels(torch.arange(count) % len(self.split))
        noise = torch.randn(count, *self.split.shape, generator=generator_for(0))
        return noise.to(self.device), None if label is None else label.to(self.device)

    def _raw(self, count: int) -> torch.Tensor:
        """Returns the pixels of some images."""
        return self.images.raw(torch.arange(count) % len(self.images))

    def _repeated(self, call: Callable[[], object], least: int = 3) -> float:
        """Returns the mean seconds of a call, after one that does not count."""
        if least > 1:
            call()
        times: list[float] = []
        while len(times) < least or (sum(times) < self.seconds and least > 1):
            start = self._now()
            call()
            times.append(self._now() - start)
        return sum(times) / len(times)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def _training_seconds(
    bench: Bench, model: nn.Module, loss: Callable[..., torch.Tensor], section: Train, split: Split, steps: int
) -> float:
    """Returns the mean seconds of an update of the real loop, the first half not counted."""
    times: list[float] = []
    plan = replace(make_plan(section, bench.params.run), steps=2 * steps, checkpoint_every=0, log_every=steps, warmup=0)
    train(
        model,
        lambda model, piece, generator: loss(model, read_piece(split, piece, bench.device), generator),
        count=len(split),
        plan=plan,
        seed=0,
        folder=None,
        key="",
        report=lambda metrics, step: times.append(bench._now()),
        name="measuring",
    )
    return (times[-1] - times[-2]) / steps


def _random_split(size: Size, shape: Shape, folder: Path) -> Split:
    images = max(1, min(size.train, MOST_BYTES // math.prod(shape)))
    pixels = torch.randint(256, (images, *shape), generator=generator_for(0), dtype=torch.uint8)
    labels = torch.arange(images) % size.classes if size.classes else None
    names, examples = tuple(map(str, range(size.classes))), Examples.of(pixels, labels)
    write_splits(folder, Source("random", shape, names, examples, examples.subset(torch.arange(1)), ""), seed=0)
    return Split.open(folder / "train")
