"""A folder of its own for a run with other params: same code, same cache, its own params.yaml."""

import fcntl
import filecmp
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nfm.config import INCEPTION, parse_params, read_mapping, with_overrides
from nfm.errors import InputError
from nfm.recipes import recipe_text

FOLDER = ".workspaces"
# Keys of a data section that name files of the user's, relative to the project's folder.
USER_FILES = ("folder", "archive", "train", "test", "autoencoder")
# What commands have fetched: weights, and objects of a store.
FETCHED = (INCEPTION, ".cache/s3", ".cache/shards")


def params_of(root: Path, recipe: str | None, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns checked params: a recipe's, or those of params.yaml, with overrides.

    Raises:
        InputError: The recipe, an override's key or a value is wrong.
    """
    if recipe is not None:
        mapping, origin = yaml.safe_load(recipe_text(recipe)), f"recipe {recipe}"
    else:
        mapping, origin = read_mapping(root / "params.yaml"), "params.yaml"
    mapping = with_overrides(mapping, dict(overrides or {}))
    parse_params(mapping, f"{origin} with overrides" if overrides else origin)
    return mapping


def workspace(root: Path, params: Mapping[str, Any]) -> Path:
    """Makes or refreshes the workspace of a set of params; the same params give the same one.

    A git worktree of HEAD with the checkout's uncommitted changes copied over. Its DVC cache is
    the checkout's, so it restores what any other workspace has made, and runs only what differs.

    Arguments:
        root: The project's folder, the root of a git checkout.
        params: What its params.yaml will hold.

    Returns:
        The workspace's folder.

    Raises:
        InputError: The project is no git checkout with a commit.
    """
    folder = place_of(root, params)
    folder.parent.mkdir(exist_ok=True)
    with _locked(folder.parent / "lock"):
        commit = git(root, "rev-parse", "HEAD").strip()
        new = not (folder / ".git").exists()
        if new:
            git(root, "worktree", "prune")
            git(root, "worktree", "add", "--force", "--detach", str(folder), commit)
        else:
            git(folder, "reset", "--quiet", commit)  # the index only: files are copied below
        _copy_changes(root, folder, set() if new else _own_files(root))
        _share_cache(root, folder)
        _link_user_files(root, folder, params)
        text = yaml.safe_dump(dict(params), sort_keys=False)
        if (folder / "params.yaml").read_text() != text:
            (folder / "params.yaml").write_text(text)
    return folder


@contextmanager
def worktree(root: Path, folder: Path, commit: str) -> Iterator[Path]:
    """Makes a worktree of a commit over the checkout's DVC cache and remotes; removes it when the block raises.

    Arguments:
        root: The project's folder, the root of a git checkout.
        folder: Where, below `FOLDER`; a worktree that is there is made anew.
        commit: Its hash.

    Raises:
        InputError: The project is no git checkout.
    """
    folder.parent.mkdir(exist_ok=True)
    with _locked(folder.parent / "lock"):
        _remove(root, folder)
        git(root, "worktree", "add", "--force", "--detach", str(folder), commit)
    try:
        _share_cache(root, folder)
        yield folder
    except BaseException:
        with _locked(folder.parent / "lock"):
            _remove(root, folder)
        raise


def remove(root: Path, folder: Path) -> None:
    """Removes a workspace; what was made in it stays in DVC's cache.

    Raises:
        InputError: Git does not say that it is gone.
    """
    with _locked(folder.parent / "lock"):
        _remove(root, folder)


def _remove(root: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    git(root, "worktree", "prune")


def place_of(root: Path, params: Mapping[str, Any]) -> Path:
    """Returns where the workspace of a set of params is, or would be."""
    content = json.dumps(params, sort_keys=True).encode()
    return root / FOLDER / hashlib.sha256(content).hexdigest()[:12]


def commit_of(root: Path) -> str:
    """Returns the hash of the checkout's commit, with "-dirty" where tracked files differ; "none" outside git."""
    try:
        return git(root, "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*").strip()
    except InputError:
        return "none"


def _copy_changes(root: Path, folder: Path, keep: set[str]) -> None:
    """Makes the workspace's files those of the checkout, committed or not.

    Arguments:
        root: The checkout.
        folder: The workspace.
        keep: Files and folders, relative, that the workspace has its own version of.
    """
    names = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    here = {n for n in names.split("\0") if n and not n.startswith(f"{FOLDER}/")}
    there = set(filter(None, git(folder, "ls-files", "-z").split("\0")))
    for name in sorted(here | there):
        source, target = root / name, folder / name
        if name == "params.yaml" or any(name == k or name.startswith(f"{k}/") for k in keep):
            continue
        if not source.is_file():
            target.unlink(missing_ok=True)
        elif not target.is_file() or not filecmp.cmp(source, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def _own_files(root: Path) -> set[str]:
    """Returns what a workspace's own runs have written among the files that git keeps."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        outs = [out for out in repo.index.outs if not out.use_cache and out.is_in_repo]
        kept = {Path(out.fs_path).relative_to(repo.root_dir).as_posix() for out in outs}
    return kept | {"dvc.lock"}


def _share_cache(root: Path, folder: Path) -> None:
    """Points the workspace's DVC at the checkout's cache and remotes, relative paths resolved."""
    from dvc.config import Config
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        shared = {
            "cache": {"dir": str(repo.cache.local_cache_dir)},
            "remote": {name: dict(remote) for name, remote in repo.config["remote"].items()},
        }
        if default := repo.config["core"].get("remote"):
            shared["core"] = {"remote": default}
    # Written without DVC's own writer, which would make the paths relative again.
    path = folder / ".dvc" / Config.CONFIG_LOCAL
    path.write_text(_as_config(shared))
    path.chmod(0o600)  # a remote's section may hold keys


def _as_config(sections: Mapping[str, Mapping[str, Any]]) -> str:
    from configobj import ConfigObj

    config = ConfigObj()
    for name, section in sections.items():
        if name != "remote":
            config[name] = {key: str(value) for key, value in section.items()}
    for name, remote in sections["remote"].items():
        config[f'remote "{name}"'] = {key: _plain(value) for key, value in remote.items()}
    return "\n".join(config.write() or []) + "\n"


def _plain(value: Any) -> Any:
    return [str(v) for v in value] if isinstance(value, list | tuple) else str(value)


def _link_user_files(root: Path, folder: Path, params: Mapping[str, Any]) -> None:
    """Lets relative paths in the params, and what was fetched, lead to the same files from the workspace."""
    data = params.get("data", {})
    named = [section[key] for section in (data, data.get("images", {})) for key in USER_FILES if key in section]
    # So that every workspace fetches into them.
    if any(name.startswith("s3://") for name in named):
        (root / ".cache" / "s3").mkdir(parents=True, exist_ok=True)
    if params.get("stream") is not None:
        (root / ".cache" / "shards").mkdir(parents=True, exist_ok=True)
    for name in [*named, *FETCHED]:
        if Path(name).is_absolute() or name.startswith("s3://"):
            continue
        if ".." in Path(name).parts:
            raise InputError(
                f"data names {name!r}, which leads out of the project and would be another place in the workspace of a "
                "run with a recipe or overrides; give an absolute path, or one below the project"
            )
        source, link = root / name, folder / name
        if source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise InputError(
            f"a run with a recipe, overrides or infra needs a git checkout with a commit: "
            f"git {arguments[0]} in {folder} says {' '.join(answer.stderr.split())}"
        )
    return answer.stdout
