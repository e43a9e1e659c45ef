"""The bucket, and the DVC remote in it."""

import configparser
import io
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.files import write_private
from infra.settings import Settings
from nfm.errors import InputError

REMOTE = "stack"  # the remote's name in .dvc/config.local


def make_client(settings: Settings) -> Any:
    """Returns a client of the S3 server."""
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_url,
        aws_access_key_id=settings["NFM_S3_ACCESS_KEY"],
        aws_secret_access_key=settings["NFM_S3_SECRET_KEY"],
        region_name="us-east-1",
        config=client_config(3).merge(Config(s3={"addressing_style": "path"})),
    )


def client_config(attempts: int) -> Config:
    """Returns how an S3 client asks: a few times, for a minute at most, with checksums that every store knows."""
    return Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
    )


def make_bucket(settings: Settings) -> None:
    """Makes the bucket, if it is not there.

    Raises:
        InputError: The server refuses it.
    """
    client = make_client(settings)
    try:
        if settings.bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=settings.bucket)
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"the bucket {settings.bucket} at {settings.s3_url} cannot be made: {error}") from error


def write_remote(root: Path, settings: Settings) -> None:
    """Makes the bucket DVC's default remote, in .dvc/config.local, which git ignores; keeps what else is there.

    Raises:
        InputError: The folder is no DVC project, or its file is not in DVC's form.
    """
    folder = root / ".dvc"
    if not folder.is_dir():
        raise InputError(f"{root} has no .dvc, so it is no DVC project; run from the project's folder")
    path = folder / "config.local"
    config = configparser.RawConfigParser()
    try:
        config.read(path)
    except configparser.Error as error:
        raise InputError(f"{path} is not in DVC's form ({' '.join(str(error).split())}); correct it") from error
    remote = {
        "url": f"s3://{settings.bucket}/dvc",
        "endpointurl": settings.s3_url,
        "region": "us-east-1",
        "access_key_id": settings["NFM_S3_ACCESS_KEY"],
        "secret_access_key": settings["NFM_S3_SECRET_KEY"],
    }
    config.read_dict({"core": {"remote": REMOTE}, f"'remote \"{REMOTE}\"'": remote})
    text = io.StringIO()
    config.write(text)
    write_private(path, text.getvalue())
