"""What `.env` says: credentials and ports, the same for the native stack and for containers."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nfm.errors import InputError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # Host headers that the servers answer to
DEFAULTS = {
    "NFM_S3_BUCKET": "nfm",
    "NFM_MLFLOW_USER": "nfm",
    "NFM_POSTGRES_PORT": "5433",
    "NFM_S3_PORT": "8333",
    "NFM_PREFECT_PORT": "4200",
    "NFM_MLFLOW_PORT": "5000",
}
SECRETS = (
    "NFM_POSTGRES_PASSWORD",
    "NFM_S3_ACCESS_KEY",
    "NFM_S3_SECRET_KEY",
    "NFM_MLFLOW_PASSWORD",
    "NFM_MLFLOW_SECRET",
    "NFM_PREFECT_AUTH",
)
WORD = "[A-Za-z0-9._~-]+"  # stands for itself in an URL, a shell, YAML and the servers' own files
PAIR = f"[A-Za-z0-9]+:{WORD}"
FORMS = {
    "NFM_POSTGRES_PASSWORD": (f"{WORD}", "letters, digits and . _ ~ -"),
    "NFM_S3_ACCESS_KEY": (PAIR, "account:user in letters and digits, such as nfm:3f9a"),
    "NFM_S3_SECRET_KEY": (f"{WORD}", "letters, digits and . _ ~ -"),
    "NFM_S3_BUCKET": ("[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", "3 to 63 small letters, digits and hyphens"),
    "NFM_MLFLOW_USER": (f"{WORD}", "letters, digits and . _ ~ -"),
    "NFM_MLFLOW_PASSWORD": ("[A-Za-z0-9._~-]{12,}", "at least 12 letters, digits and . _ ~ -"),
    "NFM_MLFLOW_SECRET": (f"{WORD}", "letters, digits and . _ ~ -"),
    "NFM_PREFECT_AUTH": (PAIR, "user:password in letters, digits and . _ ~ -"),
}
RENEW = "write a new one with `python -m infra.credentials`"


@dataclass(frozen=True)
class Settings:
    """The values of `.env`, checked.

    Attributes:
        values: Every variable of FORMS.
        postgres_port: PostgreSQL.
        s3_port: The S3 server; its own account, container and object servers take the next three.
        prefect_port: Prefect's API and pages.
        mlflow_port: MLflow's API and pages.
    """

    values: Mapping[str, str]
    postgres_port: int
    s3_port: int
    prefect_port: int
    mlflow_port: int

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    @property
    def bucket(self) -> str:
        return self["NFM_S3_BUCKET"]

    @property
    def s3_url(self) -> str:
        return f"http://{HOST}:{self.s3_port}"

    @property
    def prefect_url(self) -> str:
        return f"http://{HOST}:{self.prefect_port}/api"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.mlflow_port}"

    def database(self, name: str, driver: str = "postgresql") -> str:
        """Returns a database's address, with the password."""
        return f"{driver}://nfm:{self['NFM_POSTGRES_PASSWORD']}@{HOST}:{self.postgres_port}/{name}"

    def store_environment(self) -> dict[str, str]:
        """Returns what an S3 client needs; not every store knows the checksums that boto3 adds since 1.36."""
        return {
            "AWS_ACCESS_KEY_ID": self["NFM_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": self["NFM_S3_SECRET_KEY"],
            "AWS_ENDPOINT_URL_S3": self.s3_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def client_environment(self) -> dict[str, str]:
        """Returns what a shell or a worker needs to use all servers."""
        return {
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_API_AUTH_STRING": self["NFM_PREFECT_AUTH"],
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_TRACKING_USERNAME": self["NFM_MLFLOW_USER"],
            "MLFLOW_TRACKING_PASSWORD": self["NFM_MLFLOW_PASSWORD"],
            **self.store_environment(),
        }


def env_file(root: Path) -> Path:
    """Returns where the credentials are kept: NFM_ENV_FILE, or `.env` in the project's folder."""
    return Path(os.environ.get("NFM_ENV_FILE") or root / ".env")


def read_env(path: Path) -> dict[str, str]:
    """Reads lines of NAME=VALUE; other lines must be empty or start with #.

    Raises:
        InputError: The file is not there, is open to other users, or has another line.
    """
    try:
        text, mode = path.read_text(), path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}, which holds the credentials; {RENEW}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); {RENEW}") from error
    if mode & 0o077:
        raise InputError(f"{path} has mode {mode & 0o777:o}, which shows it to other users; chmod 600 {path}")
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch("[A-Z][A-Z0-9_]*", name.strip()):
            raise InputError(f"line {number} of {path} is not NAME=VALUE; correct it")
        found[name.strip()] = value.strip()
    return found


def load_settings(root: Path) -> Settings:
    """Reads the project's `.env`; a variable of the environment takes precedence, as with containers.

    Raises:
        InputError: A value is missing or has another form.
    """
    path = env_file(root)
    values = {**DEFAULTS, **read_env(path)}
    values |= {name: os.environ[name] for name in (*FORMS, *DEFAULTS) if os.environ.get(name)}
    for name, (form, words) in FORMS.items():
        if name not in values:
            raise InputError(f"{path} has no {name}; add it, or {RENEW}")
        if not re.fullmatch(form, values[name]):
            came = "something else" if name in SECRETS else repr(values[name])
            raise InputError(f"{name} in {path} is {came}, expected {words}")
    ports = {name: _port(name, values[name], path) for name in DEFAULTS if name.endswith("_PORT")}
    settings = Settings(
        {name: values[name] for name in FORMS},
        ports["NFM_POSTGRES_PORT"],
        ports["NFM_S3_PORT"],
        ports["NFM_PREFECT_PORT"],
        ports["NFM_MLFLOW_PORT"],
    )
    _check_distinct(ports, path)
    return settings


def _port(name: str, value: str, path: Path) -> int:
    if not value.isdecimal() or not 1024 <= int(value) <= 65532:
        raise InputError(f"{name} in {path} is {value!r}, expected a port from 1024 to 65532")
    return int(value)


def _check_distinct(ports: Mapping[str, int], path: Path) -> None:
    taken: dict[int, str] = {}
    for name, port in ports.items():
        for number in range(port, port + (4 if name == "NFM_S3_PORT" else 1)):
            if number in taken:
                raise InputError(
                    f"{name} in {path} wants the port {number}, which {taken[number]} has; choose another "
                    "(the S3 server takes four in a row)"
                )
            taken[number] = name
