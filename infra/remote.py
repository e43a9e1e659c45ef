"""Checks of the DVC remote: what is stored comes back, in one piece and in parts."""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.bucket import client_config
from infra.problem import Problem

PART = 5 * 2**20  # bytes, the least that S3 takes but for the last part
MAKE = "`make stack` configures one"


def check_small(root: Path) -> str:
    """Stores an object of a few bytes and fetches it."""
    url, client = _remote(root)
    content = secrets.token_bytes(64)
    if client is None:
        path = Path(url) / f".doctor-{secrets.token_hex(4)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        back = path.read_bytes()
        path.unlink()
    else:
        back = _round_trip(client, url, content, parts=False)
    return _same(back, content, url)


def check_multipart(root: Path) -> str:
    """Stores an object in two parts, as DVC does with large files, and fetches it."""
    url, client = _remote(root)
    if client is None:
        return "not needed in a folder"
    content = secrets.token_bytes(PART + 1)
    return _same(_round_trip(client, url, content, parts=True), content, url)


def _same(back: bytes, content: bytes, url: str) -> str:
    if back != content:
        raise Problem(f"{url} gives back other bytes than were stored; check its disk")
    return f"{len(content)} bytes to {url} and back"


def _remote(root: Path) -> tuple[str, Any]:
    """Returns the default remote's address, and a client if it is S3."""
    values = _config(root)
    name = values.get("core.remote")
    if not name:
        raise Problem(f"DVC has no default remote, so `dvc push` has nowhere to go; {MAKE}")
    remote = {k.removeprefix(f"remote.{name}."): v for k, v in values.items() if k.startswith(f"remote.{name}.")}
    url = remote.get("url", "")
    if url.startswith("s3://"):
        return url, _client(remote)
    if "://" in url or not url:
        raise Problem(f"the remote {name} is at {url!r}, and only s3:// and folders are checked; `dvc push` will tell")
    return url, None


def _config(root: Path) -> dict[str, str]:
    """Asks DVC for its settings from all its files."""
    command = [sys.executable, "-m", "dvc", "config", "--list"]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise Problem(f"dvc config fails: {' '.join(answer.stderr.split())[:200]}; run from the project's folder")
    pairs = [line.partition("=") for line in answer.stdout.splitlines() if "=" in line]
    return {name: value for name, _, value in pairs}


def _client(remote: dict[str, str]) -> Any:
    session = boto3.Session(profile_name=remote.get("profile"))
    return session.client(
        "s3",
        endpoint_url=remote.get("endpointurl") or None,
        region_name=remote.get("region") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        aws_access_key_id=remote.get("access_key_id"),
        aws_secret_access_key=remote.get("secret_access_key"),
        aws_session_token=remote.get("session_token"),
        config=client_config(2),
    )


def _round_trip(client: Any, url: str, content: bytes, parts: bool) -> bytes:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": "/".join(filter(None, (prefix, f".doctor/{secrets.token_hex(8)}")))}
    try:
        if parts:
            _put_in_parts(client, where, content)
        else:
            client.put_object(**where, Body=content)
        try:
            return client.get_object(**where)["Body"].read()
        finally:
            client.delete_object(**where)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        raise Problem(f"{url} answers {code}{_way_out(code)}") from error
    except BotoCoreError as error:
        at = client.meta.endpoint_url
        raise Problem(f"{at} cannot be used ({' '.join(str(error).split())[:160]}); start it, or {MAKE}") from error


def _put_in_parts(client: Any, where: dict[str, str], content: bytes) -> None:
    upload = client.create_multipart_upload(**where)["UploadId"]
    try:
        tags = []
        for number, start in enumerate(range(0, len(content), PART), 1):
            part = client.upload_part(**where, UploadId=upload, PartNumber=number, Body=content[start : start + PART])
            tags.append({"ETag": part["ETag"], "PartNumber": number})
        client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": tags})
    except BaseException:
        client.abort_multipart_upload(**where, UploadId=upload)
        raise


def _way_out(code: str) -> str:
    ways = {
        "NoSuchBucket": "; make the bucket, or correct the remote's url",
        "InvalidAccessKeyId": "; correct access_key_id of the remote in .dvc/config.local",
        "SignatureDoesNotMatch": "; correct secret_access_key of the remote in .dvc/config.local",
        "AccessDenied": "; the keys lack the right to write there",
        "RequestTimeTooSkewed": "; set this machine's clock",
    }
    return ways.get(code, "; see the store's own log")
