"""Whether what is to be written fits the disk, known before it starts."""

import shutil
from pathlib import Path

from nfm.errors import InputError


def require_space(folder: Path, needed: int, what: str) -> str:
    """Returns a line on the space needed and free; makes the folder if need be.

    Arguments:
        folder: Where it is to be written.
        needed: Size, bytes.
        what: Is to be written, for the line.

    Raises:
        InputError: It does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder} needs {_size(needed)} for {what}, but {_size(free)} are free there; "
            "free some and run the same command again"
        )
    return f"{what}: {_size(needed)} to write, {_size(free)} free"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
