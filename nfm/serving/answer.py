"""Requests as MLflow's server hands them over, a data frame, and its answer."""

import base64
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from nfm.errors import InputError
from nfm.serving.picture import png
from nfm.serving.requests import Request
from nfm.serving.sampler import Sampler

MOST_ROWS = 1024  # in one request


def answer(sampler: Sampler, frame: pd.DataFrame) -> pd.DataFrame:
    """Makes an image for each row.

    Arguments:
        sampler: The student.
        frame: Columns seed, nfe, solver, guidance and, where classes are asked for, label.

    Returns:
        A column `image`: a PNG file in base64, which says in a text chunk what it shows.

    Raises:
        InputError: A row cannot be answered; then none is.
    """
    if len(frame) > MOST_ROWS:
        raise InputError(f"the request has {len(frame)} rows, expected at most {MOST_ROWS}; ask several times")
    requests = [_request(number, row) for number, row in enumerate(frame.to_dict("records"))]
    for number, request in enumerate(requests):
        try:
            sampler.check(request)
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
    pictures = [png(sampler.image(request), {**sampler.origin, **asdict(request)}) for request in requests]
    return pd.DataFrame({"image": [base64.b64encode(picture).decode() for picture in pictures]})


def _request(number: int, row: Mapping[Hashable, Any]) -> Request:
    try:
        label = row.get("label")
        return Request(
            seed=_integer("seed", row["seed"]),
            nfe=_integer("nfe", row["nfe"]),
            solver=_text("solver", row["solver"]),
            guidance=_number("guidance", row["guidance"]),
            label=None if label is None or label is pd.NA or label != label else _integer("label", label),
        )
    except InputError as error:
        raise InputError(f"row {number}: {error}") from error


def _integer(key: str, value: Any) -> int:
    # pandas makes floats of the integers in a column where some are null.
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InputError(f"{key} is {value!r}, expected an integer")
    return int(value)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{key} is {value!r}, expected a number")
    return float(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} is {value!r}, expected text")
    return value
