"""`python -m nfm sample`: a grid of images by one student."""

from dataclasses import asdict
from math import ceil, sqrt
from pathlib import Path

from nfm.artifacts import atomic_path
from nfm.errors import InputError
from nfm.figures import tile
from nfm.serving.found import find_sampler
from nfm.serving.picture import png
from nfm.serving.requests import Request

MOST = 4096  # images in a grid


def sample(model: str, first: Request, count: int, out: Path, root: Path) -> str:
    """Writes a grid of images whose seeds count up from the first one's.

    Arguments:
        model: Whose images, see `find_sampler`.
        first: The first image.
        count: Number of images.
        out: The PNG file to write; its text chunk says what it shows.
        root: Folder of the project.

    Returns:
        A line on what was written.

    Raises:
        InputError: The student cannot do that, or the file cannot be written; then nothing is.
    """
    check_file(out, ".png")
    if not 1 <= count <= MOST:
        raise InputError(f"--count is {count}, expected 1 to {MOST}")
    sampler = find_sampler(model, root)
    images = sampler.images([Request(**{**asdict(first), "seed": first.seed + i}) for i in range(count)])
    sheet = png(tile(images, ceil(sqrt(count))), {**sampler.origin, **asdict(first), "count": count})
    write(out, sheet)
    named = f"{sampler.origin['model']} version {sampler.origin['version']}" if "model" in sampler.origin else model
    seeds = f"seed {first.seed}" if count == 1 else f"seeds {first.seed} to {first.seed + count - 1}"
    return f"{out}: {count} images by {named}, {seeds}, nfe {first.nfe} ({first.solver})"


def check_file(out: Path, ending: str) -> None:
    """Raises InputError unless a file of this name may be written, before anything is computed."""
    if out.suffix != ending:
        raise InputError(f"--out is {out}, expected a file whose name ends in {ending}")
    if out.is_dir():
        raise InputError(f"--out is {out}, which is a folder; name a file")


def write(out: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    try:
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"--out is {out}, which cannot be written ({error.strerror}); name another place") from error
