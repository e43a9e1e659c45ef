"""Workspaces of retrainings, which nothing needs any more once no version in use has come from them."""

from pathlib import Path

from flows.workspace import FOLDER, remove

LIST = "retrained"  # file beside the workspaces that names those of retrainings, one a line


def note(folder: Path) -> None:
    """Writes down that a workspace is a retraining's, before it is made, so that a kill leaves none unknown."""
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / LIST).open("a") as file:
        file.write(f"{folder.name}\n")


def remove_spent(root: Path, used: set[str]) -> None:
    """Removes workspaces of retrainings; what they made stays in DVC's cache.

    Arguments:
        root: The project's folder.
        used: Those that stay, relative to it.

    Raises:
        InputError: Git does not say that one is gone.
    """
    noted = root / FOLDER / LIST
    names = dict.fromkeys(noted.read_text().split()) if noted.exists() else {}
    for name in names:
        if f"{FOLDER}/{name}" not in used and (root / FOLDER / name).is_dir():
            remove(root, root / FOLDER / name)
    kept = [name for name in names if (root / FOLDER / name).is_dir()]
    if names:
        noted.write_text("".join(f"{name}\n" for name in kept))
