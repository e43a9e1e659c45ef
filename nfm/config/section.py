"""What all sections have in common, and the types of their keys."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
# Share of the training images to measure on instead of the test images, which are then left out; null: the test images.
Validation = Fraction | None
Limit = PositiveInt | None  # images of each split at most, a random choice; null: all
Version = str | None  # of image files; another text has `prepare` read them anew; null: as they are found
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
Patch = tuple[PositiveInt, PositiveInt]
Deployment = Annotated[str, Field(min_length=1)]  # of the flow nfm-stages, by its name


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


def nearest(word: str, known: Any) -> str:
    """Returns a hint that names the nearest known word, or all of them if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
