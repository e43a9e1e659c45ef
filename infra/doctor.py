"""`python -m infra.doctor`: every server, the bucket, the remote and this machine, a line each."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra import machine, remote
from infra.answers import check_mlflow, check_postgres, check_prefect, check_store, check_worker
from infra.problem import Problem
from infra.settings import Settings, load_settings
from nfm.errors import InputError


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: What was checked.
        good: Whether all is well.
        words: What is there; or what is wrong and how to mend it.
    """

    name: str
    good: bool
    words: str

    def __str__(self) -> str:
        return f"{'ok' if self.good else 'wrong':5} {self.name:12} {self.words}"


def examine(root: Path) -> Iterator[Finding]:
    """Yields the findings, one a check; none of the checks raises.

    Arguments:
        root: The project's folder.
    """
    yield _finding("versions", lambda: machine.check_versions(root))
    yield _finding("disk", lambda: machine.check_disk(root))
    yield _finding("gpu", machine.check_gpu)
    found: list[Settings] = []

    def credentials() -> str:
        found.append(load_settings(root))
        return "complete, for this user's eyes alone"

    yield _finding("credentials", credentials)
    if found:
        settings = found[0]
        yield _finding("postgres", lambda: check_postgres(settings))
        yield _finding("s3", lambda: check_store(settings))
        yield _finding("prefect", lambda: check_prefect(settings, root))
        yield _finding("worker", lambda: check_worker(settings))
        yield _finding("mlflow", lambda: check_mlflow(settings, root))
        yield _finding("clock", lambda: machine.check_clock(settings))
    yield _finding("remote", lambda: remote.check_small(root))
    yield _finding("multipart", lambda: remote.check_multipart(root))


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (Problem, InputError) as error:
        return Finding(name, False, str(error))
    except Exception as error:  # a doctor who dies of the disease helps nobody
        words = " ".join(str(error).split())[:200]
        return Finding(name, False, f"cannot be checked: {type(error).__name__}: {words}; see docs/operations.md")


def main() -> None:
    """Prints the findings as they come; the exit status is 0 if all is well, else 1."""
    good = True
    for finding in examine(Path.cwd()):
        print(finding, flush=True)
        good = good and finding.good
    sys.exit(not good)


if __name__ == "__main__":
    main()
