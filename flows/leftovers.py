"""What a full disk or a kill leaves of DVC's own files, on which every later command of DVC's would fail."""

import json
from pathlib import Path


def remove_empty_runs(cache: Path) -> None:
    """Removes the folders of the run-cache that have no entry: it was cut off, and DVC has removed it alone."""
    for folder in cache.glob("runs/*/*"):
        if not any(folder.iterdir()):
            folder.rmdir()


def remove_cut_locks(root: Path) -> None:
    """Removes DVC's list of who reads and writes what, where it was cut off while it was written.

    Arguments:
        root: The DVC project.
    """
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    folder = root / ".dvc" / "tmp"
    path = folder / RWLOCK_FILE
    if not _is_cut(path):
        return
    try:
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):  # else another process may be writing it
            if _is_cut(path):
                path.unlink()
    except (LockError, OSError):
        pass  # whoever holds it, or the full disk, is met by the next try


def _is_cut(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False
