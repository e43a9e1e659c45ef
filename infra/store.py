"""The S3 server: OpenStack Swift with its s3api, as Debian packages it."""

import hashlib
import os
import pwd
import subprocess
import sys
from pathlib import Path

from infra.files import Folder, write_private
from infra.service import Service
from infra.settings import HOST, Settings
from nfm.errors import InputError

PYTHON = "/usr/bin/python3"  # the one that Debian's packages are for
PACKAGES = {
    "proxy": "swift-proxy",
    "account": "swift-account",
    "container": "swift-container",
    "object": "swift-object",
}
LAUNCHER = Path(__file__).with_name("swift_server.py")
PARTS = ("account", "container", "object")
PIPELINE = (
    "sized_head catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy bulk slo dlo proxy-server"
)
LOUDNESS = "log_level = WARNING\n"
# There is no second server to turn to when the one there is takes its time, as on a busy machine.
PATIENCE = "conn_timeout = 30\nnode_timeout = 60\nrecoverable_node_timeout = 60\nerror_suppression_limit = 1000000\n"


class Store:
    """The S3 server of a stack: Swift's proxy in front, its account, container and object servers behind.

    Raises:
        InputError: A package is not installed.
    """

    def __init__(self, folder: Folder, settings: Settings) -> None:
        check_packages()
        self._settings = settings
        self._home = folder.home / "s3"
        self._disks = self._home / "disks"

    def prepare(self) -> None:
        """Writes the configuration and the rings."""
        (self._disks / "disk").mkdir(parents=True, exist_ok=True)
        self._home.chmod(0o700)
        _check_attributes(self._disks)
        suffix = self._home / "suffix"  # part of every object's place on disk, hence never changed
        if not suffix.exists():
            write_private(suffix, os.urandom(16).hex())
        policy = "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
        write_private(
            self._home / "swift.conf", f"[swift-hash]\nswift_hash_path_suffix = {suffix.read_text()}\n{policy}"
        )
        for part, port in self._ports().items():
            write_private(self._home / f"{part}-server.conf", self._part(part, port))
        write_private(self._home / "proxy-server.conf", self._proxy())
        ports = " ".join(map(str, self._ports().values()))
        if write_private(self._home / "ports", ports) or not (self._home / "object.ring.gz").exists():
            self._make_rings(ports.split())

    def services(self) -> list[Service]:
        """Returns the servers, in the order of starting."""
        ports = {**self._ports(), "proxy": self._settings.s3_port}
        names = {part: "s3" if part == "proxy" else f"s3-{part}" for part in ports}
        found = [self._service(names[part], f"{part}-server", f"{part}-server", port) for part, port in ports.items()]
        return [*found, self._service("s3-updater", "object-updater", "object-server", None)]

    def _service(self, name: str, what: str, file: str, port: int | None) -> Service:
        # A server whose file has changed is another service, and so restarted.
        text = (self._home / f"{file}.conf").read_bytes()
        seen = {"NFM_STACK_FILE": hashlib.sha256(text).hexdigest()}
        return Service(name, self._command(what), seen, str(self._home), port)

    def _command(self, what: str) -> tuple[str, ...]:
        return (PYTHON, "-E", str(LAUNCHER), str(self._home), what)

    def _ports(self) -> dict[str, int]:
        return {part: self._settings.s3_port + i for i, part in enumerate(PARTS, 1)}

    def _common(self, port: int) -> str:
        user = pwd.getpwuid(os.geteuid()).pw_name
        where = f"bind_ip = {HOST}\nbind_port = {port}\nswift_dir = {self._home}\ndevices = {self._disks}\n"
        # One process a server; the folder is no mount point of its own.
        return f"[DEFAULT]\n{where}user = {user}\nworkers = 0\nmount_check = false\n{LOUDNESS}"

    def _part(self, part: str, port: int) -> str:
        app = f"[pipeline:main]\npipeline = {part}-server\n[app:{part}-server]\nuse = egg:swift#{part}\n{LOUDNESS}"
        # Brings listings up to date that a stopped container server has missed.
        updater = f"[object-updater]\ninterval = 60\nconcurrency = 1\nrecon_cache_path = {self._home}\n{LOUDNESS}"
        return self._common(port) + app + (updater if part == "object" else "")

    def _proxy(self) -> str:
        user, secret = self._settings["NFM_S3_ACCESS_KEY"].replace(":", "_"), self._settings["NFM_S3_SECRET_KEY"]
        filters = {
            "cache": "paste.filter_factory = nfm_swift:cache",
            "sized_head": "paste.filter_factory = nfm_swift:sized_head",
            # Uploads in parts of 5 MiB, as boto3 makes them; any number of them, as for S3 itself.
            "s3api": "use = egg:swift#s3api\nlocation = us-east-1\nmax_upload_part_num = 10000",
            "slo": "use = egg:swift#slo\nmax_manifest_segments = 10000\nmax_manifest_size = 8388608",
            "tempauth": f"use = egg:swift#tempauth\nuser_{user} = {secret} .admin",
        }
        text = f"{self._common(self._settings.s3_port)}[pipeline:main]\npipeline = {PIPELINE}\n"
        text += f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n{PATIENCE}{LOUDNESS}"
        for name in PIPELINE.split()[:-1]:
            text += f"[filter:{name}]\n{filters.get(name, f'use = egg:swift#{name}')}\n"
        return text

    def _make_rings(self, ports: list[str]) -> None:
        answer = subprocess.run([*self._command("rings"), *ports], capture_output=True, text=True, check=False)
        if answer.returncode:
            (self._home / "ports").unlink()
            raise InputError(f"Swift cannot make its rings: {' '.join(answer.stderr.split())[-300:]}")


def check_packages() -> None:
    """Looks for Swift's servers.

    Raises:
        InputError: One is not installed; the message has the command that installs all.
    """
    for part, package in PACKAGES.items():
        if not Path(f"/usr/bin/swift-{part}-server").exists():
            every = " ".join(PACKAGES.values())
            raise InputError(f"the package {package} is not installed; apt-get install --no-install-recommends {every}")


def _check_attributes(folder: Path) -> None:
    """Tries whether a file system keeps extended attributes, in which Swift keeps what it knows of an object."""
    if not sys.platform.startswith("linux"):
        raise InputError("the native stack runs on Linux only; use infra/compose.yaml")
    try:
        os.setxattr(folder, "user.nfm", b"1")
    except OSError as error:
        raise InputError(
            f"the file system of {folder} keeps no extended attributes ({error.strerror}), which the S3 server needs; "
            "set NFM_STACK to a folder on ext4 or xfs"
        ) from error
