"""Challenger against champion: the test, the guards, and a verdict with its numbers and its reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nfm.artifacts import sha256
from nfm.build.measure import Measure, load_measure
from nfm.build.student import TrainedStudent, load_student
from nfm.config import Params
from nfm.errors import InputError
from nfm.promotion.guards import Guard, check_guards, nearness
from nfm.promotion.measure import Measured, measure_student, settings_of
from nfm.promotion.paired import Paired, differences, paired_test


@dataclass(frozen=True)
class Candidate:
    """A student that is judged.

    Attributes:
        label: What sentences call it, such as "version 3".
        weights: Its safetensors file.
        evidence: How it was made, from `nfm.promotion.evidence`.
    """

    label: str
    weights: Path
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a challenger becomes champion.

    Attributes:
        promoted: Whether it does.
        reason: Why, one sentence with the numbers.
        figures: All numbers, as JSON can hold them.
    """

    promoted: bool
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)


def judge(
    challenger: Candidate, champion: Candidate | None, folder: Path, params: Params, device: torch.device
) -> Verdict:
    """Judges a challenger by the features and the held-out images of a project's folder.

    Both students are measured anew, so that what either was measured with before does not matter. Where there is no
    champion, the guards alone decide.

    Arguments:
        challenger: Who would become champion.
        champion: Who is.
        folder: The project, whose stages `features` and `reference` are up to date.
        params: Its params.
        device: Where to compute.

    Raises:
        InputError: The two do not make images of one shape and the same classes, or a file is missing or damaged.
    """
    if champion and sha256(challenger.weights) == sha256(champion.weights):
        return Verdict(False, f"{challenger.label} has the weights of {champion.label}, the champion")
    measure = load_measure(params.evaluate, folder, device)
    ours = _load(challenger, measure, device)
    theirs = _load(champion, measure, device) if champion else None
    if champion and theirs:
        _check_alike(challenger, ours, champion, theirs)
    one_step = ours.one_step or (theirs is not None and theirs.one_step)
    setting = settings_of(params.promote, one_step=one_step)
    with_what: dict[str, Any] = {"batch": params.run.sample_batch, "device": device}
    found = measure_student(ours, measure, setting, params.promote, params.evaluate, **with_what)
    rival = measure_student(theirs, measure, setting, params.promote, params.evaluate, **with_what) if theirs else None
    guards = _guards(challenger, champion, found, rival, measure, params)
    test = _test(found, rival, params)
    promoted = all(guard.passed for guard in guards) and (test is None or test.p < params.promote.alpha)
    reason = _reason(challenger, champion, promoted, test, guards, setting[1], params)
    return Verdict(promoted, reason, _figures(found, rival, guards, test, setting, measure, params))


def _load(candidate: Candidate, measure: Measure, device: torch.device) -> TrainedStudent:
    student = load_student(candidate.weights, device)
    shape, wanted = tuple(student.model.shape), tuple(measure.test.learnt)
    if shape != wanted:
        raise InputError(
            f"{candidate.label} makes what has shape {shape}, the held-out images have {wanted}: they cannot be "
            "compared; promote by hand with --force --reason TEXT, or train on images of one shape"
        )
    return student


def _check_alike(challenger: Candidate, ours: TrainedStudent, champion: Candidate, theirs: TrainedStudent) -> None:
    new, old = (student.model.classes or 0 for student in (ours, theirs))
    if new != old:
        raise InputError(
            f"{challenger.label} knows {new} classes and {champion.label}, the champion, {old}: their samples cannot "
            "be compared; promote by hand with --force --reason TEXT"
        )


def _guards(
    challenger: Candidate,
    champion: Candidate | None,
    found: Measured,
    rival: Measured | None,
    measure: Measure,
    params: Params,
) -> list[Guard]:
    train, test = measure.train.statistics.rows, measure.test.statistics.rows
    return check_guards(
        params.promote.guards,
        evidence=challenger.evidence,
        before=champion.evidence if champion else {},
        broken=found.broken,
        accuracy=(found.accuracy, rival.accuracy if rival else None),
        near=nearness(found.features, test, train) if len(found.features) else None,
    )


def _test(found: Measured, rival: Measured | None, params: Params) -> Paired | None:
    if rival is None:
        return None
    return paired_test(differences(found.fd, rival.fd), params.promote.margin)


def _reason(
    challenger: Candidate,
    champion: Candidate | None,
    promoted: bool,
    test: Paired | None,
    guards: Sequence[Guard],
    nfe: Sequence[int],
    params: Params,
) -> str:
    """Says in one sentence what decided."""
    verb = "is promoted" if promoted else "is refused"
    parts = []
    if champion and test:
        section = params.promote
        sign = "<" if test.p < section.alpha else ">="
        parts.append(
            f"its FD at NFE {', '.join(map(str, nfe))} is {test.ratio:.3g} times that of {champion.label}, and p = "
            f"{test.p:.2g} {sign} {section.alpha:g} that it is less than {1 - section.margin:g} times "
            f"({section.evaluations} paired evaluations of {section.samples} samples)"
        )
    else:
        parts.append("there is no champion")
    failed = [guard.line for guard in guards if not guard.passed]
    parts += failed or ["all guards pass"]
    return f"{challenger.label} {verb}: {'; '.join(parts)}"


def _figures(
    found: Measured,
    rival: Measured | None,
    guards: Sequence[Guard],
    test: Paired | None,
    setting: tuple[str, Sequence[int]],
    measure: Measure,
    params: Params,
) -> dict[str, Any]:
    return finite(
        {
            "solver": setting[0],
            "nfe": list(setting[1]),
            "challenger": {"fd": found.fd, "accuracy": found.accuracy, "broken": found.broken},
            "champion": {"fd": rival.fd, "accuracy": rival.accuracy, "broken": rival.broken} if rival else None,
            "test": asdict(test) if test else None,
            "guards": [asdict(guard) for guard in guards],
            "section": params.promote.model_dump(mode="json"),
            "yardstick": measure.yardstick | {"samples": params.promote.samples},
        }
    )


def finite(content: Any) -> Any:
    """Returns a copy as JSON can hold it: None for numbers that are not finite, lists for tuples."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
