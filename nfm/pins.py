"""What is installed against requirements.lock."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

LOCK = "requirements.lock"


def pins(path: Path) -> dict[str, str]:
    """Returns the versions of a lock file that hold on this machine, by package."""
    found = {}
    for line in path.read_text().splitlines():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


def differing(wanted: dict[str, str]) -> dict[str, str | None]:
    """Returns the installed versions that are not the wanted ones, by package; None for what is missing.

    What stands behind a "+" does not count: torch has one there for each kind of accelerator.
    """
    found: dict[str, str | None] = {}
    for name, pin in wanted.items():
        try:
            if (present := version(name)).partition("+")[0] != pin.partition("+")[0]:
                found[name] = present
        except PackageNotFoundError:
            found[name] = None
    return found
