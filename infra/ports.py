"""Whether the stack's ports are free, and who has those that are not."""

import socket
from collections.abc import Collection

from psutil import Process

from infra.leftovers import listener
from infra.settings import HOST, Settings
from infra.store import PARTS
from nfm.errors import InputError


def is_free(port: int) -> bool:
    """Returns whether nobody listens at a port; Swift's servers would share one without a word."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError:
            return False
    return True


def ports(settings: Settings) -> dict[int, tuple[str, str]]:
    """Returns for every port the service that listens there, and the variable that sets it."""
    store = {f"s3-{part}": f"NFM_S3_PORT + {above}" for above, part in enumerate(PARTS, 1)}
    services = {"s3": "NFM_S3_PORT", **store}
    return {
        settings.postgres_port: ("postgres", "NFM_POSTGRES_PORT"),
        **{settings.s3_port + above: each for above, each in enumerate(services.items())},
        settings.prefect_port: ("prefect", "NFM_PREFECT_PORT"),
        settings.mlflow_port: ("mlflow", "NFM_MLFLOW_PORT"),
    }


def check_ports(settings: Settings, own: Collection[Process]) -> None:
    """Sees that no port is taken by a program which is not the stack's own.

    Raises:
        InputError: One is; the message names port, variable and program.
    """
    for port, (service, variable) in ports(settings).items():
        if is_free(port):
            continue
        holder = listener(port)
        if holder in own:
            continue
        words = f"process {holder.pid} ({holder.name()})" if holder else "another process"
        raise InputError(
            f"the port {port} ({variable}), where {service} is to listen, is taken by {words}; end that, or give "
            f"{variable.partition(' ')[0]} in .env another value"
        )
