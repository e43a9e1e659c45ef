"""Backups of the stack: `python -m infra.backup save FOLDER`, or `restore FOLDER`.

A backup is a folder with a dump of each database, the bucket's objects by their SHA-256, and `backup.json`, which lists
them. Databases go first, so that every object which they name is in the copy of the bucket.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from infra.bucket import make_client
from infra.files import write_private
from infra.postgres import DATABASES, find_programs
from infra.settings import HOST, Settings, load_settings
from infra.stack import FAILURES, Stack, alone
from nfm.errors import InputError

FORM = 1
LIST = "backup.json"
TEMPORARY = "_restored"  # end of a database's name while it is being filled


def save(settings: Settings, folder: Path) -> str:
    """Copies all databases and the bucket into a new folder, which appears when it is complete.

    Raises:
        InputError: The folder exists, or a server refuses.
    """
    if folder.exists():
        raise InputError(f"{folder} exists, and a backup is never overwritten; name a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "objects").mkdir(parents=True, mode=0o700)
    partial.chmod(0o700)
    for name in DATABASES:
        _run(settings, "pg_dump", "--format=custom", f"--file={partial / name}.dump", f"--dbname={name}")
    client, objects = make_client(settings), {}
    for key in _keys(client, settings.bucket):
        objects[key] = _fetch(client, settings.bucket, key, partial / "objects")
    dumps = {name: _digest(partial / f"{name}.dump") for name in DATABASES}
    content = {"form": FORM, "bucket": settings.bucket, "databases": dumps, "objects": objects}
    write_private(partial / LIST, json.dumps(content, indent=1, sort_keys=True))
    partial.rename(folder)
    return f"{len(DATABASES)} databases and {len(objects)} objects are in {folder}"


def restore(stack: Stack, folder: Path) -> str:
    """Replaces the databases by those of a backup, and puts its objects back; starts the stack.

    The backup is read in full first, and each database is filled under another name before it takes its place. Objects
    that are in the bucket only are kept. The passwords are those of `.env`, whatever they were.

    Raises:
        InputError: The backup is damaged, or a server refuses.
        NotReady: A service does not start.
    """
    content = read_list(folder)
    stack.up_storage()
    stack.stop_applications()
    for name in content["databases"]:
        stack.postgres.query(f"DROP DATABASE IF EXISTS {name}{TEMPORARY} WITH (FORCE)")
        stack.postgres.query(f"CREATE DATABASE {name}{TEMPORARY}")
        command = ["--no-owner", "--exit-on-error", f"--dbname={name}{TEMPORARY}", str(folder / f"{name}.dump")]
        _run(stack.settings, "pg_restore", *command)
    client = make_client(stack.settings)
    for key, sha256 in content["objects"].items():
        client.upload_file(str(folder / "objects" / sha256), stack.settings.bucket, key)
    for name in content["databases"]:
        stack.postgres.query(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        stack.postgres.query(f"ALTER DATABASE {name}{TEMPORARY} RENAME TO {name}")
    stack.up()
    return f"{len(content['databases'])} databases and {len(content['objects'])} objects of {folder} are back"


def read_list(folder: Path) -> dict[str, Any]:
    """Reads what a backup holds, and holds every file against its digest.

    Raises:
        InputError: There is no backup, or a file of it is missing or damaged.
    """
    try:
        content = json.loads((folder / LIST).read_text())
        databases: Mapping[str, str] = content["databases"]
        objects: Mapping[str, str] = content["objects"]
        known = content["form"] == FORM and set(databases) == set(DATABASES)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder} is no backup, since its {LIST} cannot be read ({error}); name another") from error
    if not known:
        raise InputError(f"{folder / LIST} has the form {content['form']!r}, expected {FORM}; use the nfm of its time")
    files = {f"{name}.dump": sha256 for name, sha256 in databases.items()}
    files |= {f"objects/{sha256}": sha256 for sha256 in objects.values()}
    for name, sha256 in files.items():
        if not (folder / name).is_file() or _digest(folder / name) != sha256:
            raise InputError(f"{folder / name} is missing or damaged, so nothing is restored; take another backup")
    return content


def _keys(client: Any, bucket: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        yield from (each["Key"] for each in page.get("Contents", []))


def _fetch(client: Any, bucket: str, key: str, folder: Path) -> str:
    """Downloads an object; returns its SHA-256, by which the file is named."""
    temporary = folder / "part"
    client.download_file(bucket, key, str(temporary))
    sha256 = _digest(temporary)
    temporary.rename(folder / sha256)
    return sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(settings: Settings, program: str, *arguments: str) -> None:
    """Runs a client of PostgreSQL's, with the password in its environment."""
    where = [f"--host={HOST}", f"--port={settings.postgres_port}", "--username=nfm"]
    environment = {**os.environ, "PGPASSWORD": settings["NFM_POSTGRES_PASSWORD"]}
    command = [str(find_programs() / program), *where, *arguments]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise InputError(f"{program} fails: {' '.join(answer.stderr.split())[:300]}; `make doctor` says more")


def main() -> None:
    """Runs the command line; bad input is one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m infra.backup", description="Back up the stack, or restore it.")
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    try:
        if asked.what == "save":
            print(save(load_settings(Path.cwd()), asked.folder))
            return
        stack = Stack(Path.cwd())
        with alone(stack.folder):
            print(restore(stack, asked.folder))
    except InputError as error:
        print(f"nfm: {error}", file=sys.stderr)
        sys.exit(2)
    except (*FAILURES, Boto3Error, BotoCoreError, ClientError) as error:
        print(f"nfm: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
