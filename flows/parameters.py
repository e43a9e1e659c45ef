"""The types of flow parameters: Prefect's interface draws a form from them, its server refuses what does not fit."""

from typing import Annotated, Any

from pydantic import Field

from nfm.recipes import recipe_names

# By `json_schema_extra`, which the server checks and pydantic does not: elsewhere our own sentences say what is wrong.
Recipe = Annotated[str, Field(json_schema_extra={"enum": [*recipe_names()]})]
Overrides = dict[str, Any]
Stage = Annotated[str, Field(json_schema_extra={"pattern": r"^[\w-]+(@[\w.-]+)?$"})]
Stages = Annotated[list[Stage], Field(json_schema_extra={"minItems": 1, "uniqueItems": True})]
