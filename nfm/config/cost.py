"""The section `cost`: what machine time costs."""

from typing import Annotated

from pydantic import Field

from nfm.config.section import Section

Price = Annotated[float, Field(ge=0)]


class Cost(Section):
    """Rates of machine time; changes no result and reruns nothing."""

    cpu_hour: Price | None  # of one core for an hour; null where it is not known
    gpu_hour: dict[str, Price]  # of a GPU for an hour, by a part of its name such as H100; the longest that fits
    currency: Annotated[str, Field(min_length=1)]
