"""Energy of the machine while a stage runs, read from its own counters where they can be read."""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")  # Linux: a folder a processor package, in most places for root only
NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver


def gpus_here() -> tuple[int, ...]:
    """Returns the indices of the GPUs that the processes of this launch compute on, as the driver counts them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if visible is None:
        return tuple(range(count))
    names = visible.split(",")[:count]
    return tuple(map(int, names)) if all(name.strip().isdigit() for name in names) else ()


class Meter:
    """Counts joules from its making on.

    Package counters are the whole machine's: stages that run side by side are each charged all of it.

    References:
        https://docs.kernel.org/power/powercap/powercap.html
        https://docs.nvidia.com/deploy/nvml-api (nvmlDeviceGetTotalEnergyConsumption)

    Arguments:
        gpus: Indices of the GPUs that the stage computes on.
        powercap: Where the kernel shows package counters.
    """

    def __init__(self, gpus: tuple[int, ...] = (), powercap: Path = POWERCAP) -> None:
        self._gpus, self._powercap = gpus, powercap
        self._packages, self._boards = _packages(powercap), _boards(gpus)

    def read(self) -> dict[str, float]:
        """Returns joules by "cpu" and "gpu" since the start; a part whose counters cannot be read is absent."""
        found: dict[str, float] = {}
        now = _packages(self._powercap)
        if self._packages and now.keys() == self._packages.keys():
            found["cpu"] = sum(_since(now[name], self._packages[name], self._powercap / name) for name in now)
        boards = _boards(self._gpus)
        if self._boards and boards.keys() == self._boards.keys():
            found["gpu"] = sum(boards[index] - self._boards[index] for index in boards)
        return {name: round(value, 1) for name, value in found.items()}


def _packages(powercap: Path) -> dict[str, float]:
    """Returns joules by package; of zones below a package, such as its cores, none, as it holds them."""
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:
            try:
                found[zone.name] = int((zone / "energy_uj").read_text()) / 1e6
            except (OSError, ValueError):
                return {}
    return found


def _since(now: float, before: float, zone: Path) -> float:
    if now >= before:
        return now - before
    try:  # the counter has run over
        return now - before + int((zone / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return 0.0


def _boards(gpus: tuple[int, ...]) -> Mapping[int, float]:
    """Returns joules by GPU since its driver was loaded."""
    if not gpus:
        return {}
    try:
        nvml = ctypes.CDLL(NVML)
        if nvml.nvmlInit_v2():
            return {}
        return {index: _board(nvml, index) for index in gpus}
    except (OSError, AttributeError, ValueError):
        return {}


def _board(nvml: ctypes.CDLL, index: int) -> float:
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
    if failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        raise ValueError("the board has no counter of energy")
    return millijoules.value / 1000
