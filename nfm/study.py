"""A study: variants of a recipe under one question, and what the pipeline measured of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from nfm.config import Section, nearest
from nfm.errors import InputError
from nfm.validation import sentences

TEACHER = "teacher"
Overrides = dict[str, Any]  # params by dotted key


class Study(Section):
    """A file of nfm/recipes/studies."""

    question: str
    recipe: str
    common: Overrides  # over the recipe, in every variant
    variants: Annotated[dict[str, Overrides], Field(min_length=2)]  # over that, by name

    def overrides(self, variant: str) -> Overrides:
        """Returns what a variant changes in the recipe."""
        return {**self.common, **self.variants[variant]}


def study_names() -> list[str]:
    """Returns the names of the studies that come with the package."""
    return sorted(path.stem for path in _folder().iterdir() if path.suffix == ".yaml")


def load_study(name: str) -> Study:
    """Reads a study.

    Raises:
        InputError: There is no study of that name.
    """
    if name not in study_names():
        raise InputError(f"study is {name!r}, which does not exist{nearest(name, study_names())}")
    mapping = yaml.safe_load((_folder() / f"{name}.yaml").read_text())
    try:
        return Study.model_validate(mapping)
    except ValidationError as error:
        raise InputError(f"study {name}: {sentences(error, mapping)[0]}") from error


def joined(study: Study, summaries: Mapping[str, dict[str, Any]], commit: str) -> dict[str, Any]:
    """Returns a study's results: its question, and for each variant its overrides and its run's summary.

    Arguments:
        study: The study.
        summaries: Of its variants' runs, by name.
        commit: Of the code that they ran.
    """
    # A list, since the file's keys are sorted and the variants have an order.
    variants = [{"name": n, "overrides": study.variants[n], "summary": summary} for n, summary in summaries.items()]
    return {**study.model_dump(include={"question", "recipe", "common"}), "commit": commit, "variants": variants}


@dataclass(frozen=True)
class Row:
    """One coupling of one variant.

    Attributes:
        name: The variant's, with the coupling's where it has several.
        coupling: The coupling.
        fd: One value a seed, by NFE in rising order.
        summary: Of the variant's run.
    """

    name: str
    coupling: str
    fd: dict[str, list[float]]
    summary: dict[str, Any]


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Returns the couplings of the variants of `joined` results, in the study's order."""
    found = []
    for variant in results["variants"]:
        name, summary = variant["name"], variant["summary"]
        for coupling, fd in summary["fd"].items():
            own = name if len(summary["fd"]) == 1 else f"{name}, {coupling}"
            # The keys of a file are in the order of text.
            found.append(Row(own, coupling, dict(sorted(fd.items(), key=lambda item: int(item[0]))), summary))
    return found


def table(results: Mapping[str, Any]) -> str:
    """Returns FD by variant and NFE, mean ± deviation of seeds, as Markdown.

    The last columns are the students' curvature, the coupling's C2ST and FD of the teacher's denoised samples.
    """
    lines: list[list[str]] = []
    for row in rows(results):
        summary = row.summary
        if not lines:
            lines = [["NFE", *row.fd, "κ", "C2ST", "teacher"], ["---"] * (len(row.fd) + 4)]
        cells = [row.name, *map(_spread, row.fd.values()), f"{fmean(summary['curvature'][row.coupling]):.3f}"]
        if row.coupling == TEACHER:
            cells += [f"{summary['coupling']['c2st']:.3f}", f"{summary['teacher']['fd_denoised']:.2f}"]
        lines.append(cells + [""] * (len(lines[0]) - len(cells)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _folder() -> Path:
    return Path(str(resources.files("nfm"))) / "recipes" / "studies"
