"""What samples were measured with: the measures' names, and the refusal to compare two that differ in it."""

import re
from collections.abc import Mapping
from typing import Any

from nfm.errors import InputError

Yardstick = Mapping[str, Any]  # what was measured with, by word: features, resize filter, counts


MEASURES = ("fd", "fd_train", "kid", "precision", "recall")  # all depend on the features and on the count


def measure_names(dataset: str, samples: int, *, inception: bool, rotation: bool = False) -> dict[str, str]:
    """Returns the measures' full names, with features and count: `fid_50k`, `fd_digits_1k_train`, `kid_digits_1k`.

    Arguments:
        dataset: Name of the data set whose classifier gives the features, if it is not Inception.
        samples: Number of samples; whole thousands are written with a k.
        inception: Whether the features are Inception's.
        rotation: Whether they are, if not Inception's, of a classifier of quarter turns, for want of classes.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")
    features = [] if inception else [plain + "_rot" * rotation]
    count = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    names = {}
    for measure in MEASURES:
        word, *images = measure.split("_")
        names[measure] = "_".join(["fid" if inception and word == "fd" else word, *features, count, *images])
    return names


def shared_yardstick(yardsticks: Mapping[str, Yardstick | None]) -> Yardstick:
    """Returns the yardstick that all figures were measured with.

    Arguments:
        yardsticks: At least one, by the file of the figure; None where the file does not say.

    Raises:
        InputError: Two differ in their features, resize filter or a count, or one does not say.
    """
    known = {origin: yardstick for origin, yardstick in yardsticks.items() if yardstick}
    for origin in yardsticks:
        if origin not in known:
            raise InputError(f"{origin} does not say what it was measured with; run the stage that makes it again")
    (first, wanted), *others = known.items()
    for origin, found in others:
        for word in sorted({*wanted, *found}):
            if found.get(word) != wanted.get(word):
                raise InputError(
                    f"{origin} was measured with {word} {found.get(word)!r}, {first} with {wanted.get(word)!r}; "
                    "they cannot be compared, run the stages that make them again with the same settings"
                )
    return wanted
