"""The command that writes `.env`: random credentials, for this user's eyes alone."""

import argparse
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.files import write_private
from infra.settings import DEFAULTS, SECRETS, env_file, read_env
from nfm.errors import InputError


def new_secrets(kept: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns a random value for every secret, in the form that all servers take.

    Arguments:
        kept: What has been in use. The account of its S3 key stays, "account:user", for buckets belong to it; so does
            the user's name for Prefect.
    """
    pairs = ((kept or {}).get(name, "nfm:") for name in ("NFM_S3_ACCESS_KEY", "NFM_PREFECT_AUTH"))
    account, user = (pair.partition(":")[0] for pair in pairs)
    return {
        "NFM_POSTGRES_PASSWORD": secrets.token_urlsafe(24),
        "NFM_S3_ACCESS_KEY": f"{account}:{secrets.token_hex(8)}",
        "NFM_S3_SECRET_KEY": secrets.token_urlsafe(30),
        "NFM_MLFLOW_PASSWORD": secrets.token_urlsafe(24),
        "NFM_MLFLOW_SECRET": secrets.token_hex(32),
        "NFM_PREFECT_AUTH": f"{user}:{secrets.token_urlsafe(24)}",
    }


def write_credentials(path: Path, rotate: bool = False) -> None:
    """Writes the file with mode 0600.

    Arguments:
        path: The file.
        rotate: Replaces the secrets of a file that exists, and keeps everything else in it.

    Raises:
        InputError: The file exists and `rotate` is off, or the other way round; git tracks or
            would add it.
    """
    if path.exists() and not rotate:
        raise InputError(f"{path} exists and is kept; renew its secrets with --rotate")
    if rotate and not path.exists():
        raise InputError(f"there is no {path} to rotate; leave --rotate out")
    if not _ignored(path):
        raise InputError(f"{path} is not ignored by git, which could publish it; add it to .gitignore")
    kept = read_env(path) if rotate else {}
    values = {**DEFAULTS, **kept, **new_secrets(kept)}
    write_private(path, _text(values))


def _text(values: Mapping[str, str]) -> str:
    ports = [name for name in values if name.endswith("_PORT")]
    others = [name for name in values if name not in ports and name not in SECRETS]
    groups = {
        "Written by `python -m infra.credentials`; keep it to yourself.": SECRETS,
        "Names": others,
        "Ports on 127.0.0.1; the S3 server of the native stack takes the next three too": ports,
    }
    lines = []
    for title, names in groups.items():
        lines += [f"# {title}", *(f"{name}={values[name]}" for name in names)]
    return "\n".join(lines) + "\n"


def _ignored(path: Path) -> bool:
    """Whether git leaves a file alone: it ignores it, or the file is in no repository."""
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    inside = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=folder, capture_output=True, check=False)
    if inside.returncode:
        return True
    asked = ["git", "check-ignore", "--quiet", path.name]
    return subprocess.run(asked, cwd=folder, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.credentials", description="Write .env with random secrets.")
    parser.add_argument("--rotate", action="store_true", help="renew the secrets of the .env that is there")
    asked = parser.parse_args()
    path = env_file(Path.cwd())
    try:
        write_credentials(path, asked.rotate)
    except (InputError, OSError) as error:
        print(f"nfm: {error}", file=sys.stderr)
        sys.exit(2)
    then = "; `make stack` applies them" if asked.rotate else ""
    print(f"{path} has {'new' if asked.rotate else 'random'} secrets, mode 0600{then}")


if __name__ == "__main__":
    main()
