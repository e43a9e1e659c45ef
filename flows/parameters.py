"""The parameters of flows: their types, from which Prefect's interface draws a form, and overrides as text."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import yaml
from pydantic import Field

from nfm.errors import InputError
from nfm.recipes import recipe_names

# By `json_schema_extra`, which the server checks and pydantic does not: elsewhere our own sentences say what is wrong.
Recipe = Annotated[str, Field(json_schema_extra={"enum": [*recipe_names()]})]
Overrides = dict[str, Any]
Stage = Annotated[str, Field(json_schema_extra={"pattern": r"^[\w-]+(@[\w.-]+)?$"})]
Stages = Annotated[list[Stage], Field(json_schema_extra={"minItems": 1, "uniqueItems": True})]


def overrides_of(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the overrides that several `--set KEY=VALUE` of a command line state.

    Raises:
        InputError: One has no key, or a value that is not YAML.
    """
    return dict(map(_override, texts))


def _override(text: str) -> tuple[str, Any]:
    """Parses key=value, the value as YAML; unlike in YAML 1.1 a number may be written 1e-4."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set is {text!r}, expected KEY=VALUE such as student.train.steps=100")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {key} is {value!r}, which is not YAML") from error
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)
    return key, parsed
