"""Checks of this machine: versions, disk, GPU, clock."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from infra.files import Folder
from infra.http import ask
from infra.problem import Problem
from infra.settings import Settings
from nfm import pins as locked

GIB = 2**30
FREE = 5 * GIB  # of disk, below which a training may not end
SKEW = 30.0  # seconds; S3 refuses signatures from 15 minutes on, and logs of two machines mix before that
SHOWN = 3
# What a machine may do without: the tests and checks, autoencoders.
OPTIONAL = re.compile("moto|pytest|ruff|pyright|pre-commit|import-linter|hatchling|diffusers|uv$")


def pins(root: Path) -> dict[str, str]:
    """Returns the versions of requirements.lock that hold on this machine."""
    try:
        return locked.pins(root / locked.LOCK)
    except OSError as error:
        raise Problem("there is no requirements.lock here; run from the project's folder") from error


def check_versions(root: Path) -> str:
    """Holds what is installed against requirements.lock."""
    wanted = pins(root)
    wrong = list(_differing(wanted))
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise Problem(f"{', '.join(wrong[:SHOWN])}{more} differ from requirements.lock; make .venv/.ready")
    return f"{len(wanted)} packages as in requirements.lock, Python {sys.version.split()[0]}"


def _differing(wanted: dict[str, str]) -> Iterator[str]:
    for name, present in locked.differing(wanted).items():
        if present is not None:
            yield f"{name} {present} (wanted {wanted[name]})"
        elif not OPTIONAL.match(name):
            yield f"{name} (missing, wanted {wanted[name]})"


def check_disk(root: Path) -> str:
    """Looks for space where the project, its cache and the servers write."""
    places = {root, Folder.of(root).home, root / ".dvc" / "cache"}
    free = {}
    for place in sorted(places):
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free[place] = shutil.disk_usage(there).free
    least = min(free, key=lambda place: free[place])
    if free[least] < FREE:
        raise Problem(
            f"{least} has {free[least] / GIB:.1f} GiB left, less than {FREE / GIB:.0f}; free some, for example with "
            "`dvc gc --workspace` after a push"
        )
    return f"{free[least] / GIB:.0f} GiB left"


def check_gpu() -> str:
    """Asks the driver for GPUs, and if there are any torch too."""
    driver = shutil.which("nvidia-smi")
    listed = subprocess.run([driver, "-L"], capture_output=True, text=True, check=False) if driver else None
    if listed is None or (listed.returncode and "No devices" in listed.stdout + listed.stderr):
        return "none; stages run on the CPU"
    if listed.returncode:
        said = " ".join((listed.stdout + listed.stderr).split())[:120]
        raise Problem(f"nvidia-smi fails ({said}); mend the driver, or stages run on the CPU")
    count = len([line for line in listed.stdout.splitlines() if line.startswith("GPU")])
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    seen = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if seen != str(count):
        raise Problem(
            f"the driver has {count} GPUs and torch sees {seen or 'none'}; unset CUDA_VISIBLE_DEVICES, or install the "
            "torch that is built for the driver"
        )
    return f"{count}, seen by torch"


def check_clock(settings: Settings) -> str:
    """Holds this machine's clock against the servers' Date headers."""
    urls = {
        "s3": f"{settings.s3_url}/healthcheck",
        "prefect": f"{settings.prefect_url}/health",
        "mlflow": f"{settings.mlflow_url}/health",
    }
    skews = {}
    for name, url in urls.items():
        if date := ask(url).headers.get("date"):
            skews[name] = parsedate_to_datetime(date).timestamp() - time.time()
    if not skews:
        raise Problem("no server tells the time; start them with `make stack`")
    worst = max(skews, key=lambda name: abs(skews[name]))
    if abs(skews[worst]) > SKEW:
        raise Problem(
            f"{worst}'s clock is {skews[worst]:+.0f} s from this machine's; set both by NTP, or S3 refuses signatures"
        )
    return f"within {max(1.0, abs(skews[worst])):.0f} s of {', '.join(skews)}"
