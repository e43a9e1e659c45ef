"""The whole of params.yaml: read, checked, overridden."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from nfm.config.cost import Cost
from nfm.config.coupling import FROM_DATA, CouplingSection
from nfm.config.data import DataSection
from nfm.config.evaluate import Evaluate
from nfm.config.networks import Features, Student, Teacher
from nfm.config.promote import Promote
from nfm.config.run import Run
from nfm.config.section import Deployment, Section, nearest
from nfm.errors import InputError
from nfm.validation import sentences

# No key may be called one of these: DVC leaves keys of these names, at any depth, out of what its run-cache knows a run
# by, and would restore the outputs of another value.
HIDDEN = ("size", "nfiles")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NAMES = "expected letters, digits, - and _, first no - or _, and neither 'size' nor 'nfiles'"


class Params(Section):
    """The whole of params.yaml."""

    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    couplings: Annotated[tuple[str, ...], Field(min_length=1)]
    # The next two follow from the kinds of those couplings, which DVC cannot tell; see `following`.
    from_data: tuple[str, ...]  # those that are made from the data alone
    one_step: tuple[str, ...]  # those whose students take one step
    data: DataSection
    stream: str | None  # s3://bucket/prefix where `prepare` leaves the training images
    features: Features
    teacher: Teacher
    coupling: dict[str, CouplingSection]
    student: Student
    evaluate: Evaluate
    promote: Promote  # when a retrained student becomes champion; changes no result and reruns nothing
    cost: Cost  # of machine time; changes no result and reruns nothing
    run: Run
    infra: dict[str, Deployment]  # where stages run that do not run here; changes no result and reruns nothing

    @field_validator("stream")
    @classmethod
    def _check_stream(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("s3://[^/]+(/.*)?", value):
            raise ValueError(f"it is {value!r}, expected s3://bucket/prefix, or null for images on the disk")
        return value

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
