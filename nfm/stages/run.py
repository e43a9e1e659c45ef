"""What every stage shares: its key, its tracker, its clock, and the record that it leaves."""

import os
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import BaseModel

import nfm
from nfm.artifacts import digest, sha256, write_json
from nfm.config import Params
from nfm.energy import Meter, gpus_here
from nfm.stages.settled import discard_settled, is_dvcs
from nfm.tracker import Tracker, record_path
from nfm.tracking import open_tracker
from nfm.train.checkpoint import discard
from nfm.train.launch import open_processes
from nfm.train.pulse import Pulse


@dataclass(frozen=True)
class StageRun:
    """One execution of a stage.

    Attributes:
        address: The stage's name in dvc.yaml, such as "student@teacher-0".
        root: The project's folder.
        key: Hash of all that decides the outputs: sections, input files, source code.
        tracker: Where params, metrics and images are reported.
        device: Where tensors live.
        main: Whether this process, of several, is the one that writes.
    """

    address: str
    root: Path
    key: str
    tracker: Tracker
    device: torch.device
    main: bool

    @property
    def checkpoint(self) -> Path:
        """Folder of this execution's checkpoint; another key has another folder."""
        return checkpoint_folder(self.root, self.address, self.key)

    def report(self, metrics: dict[str, float], step: int) -> None:
        """Passes a loop's metrics on to the tracker."""
        if self.main:
            self.tracker.metrics(metrics, step)

    def write_metrics(self, name: str, metrics: dict[str, Any]) -> None:
        """Writes a metrics file of DVC's; `name` is its path below metrics/, without ending."""
        if self.main:
            write_json(self.root / "metrics" / f"{name}.json", metrics)


def checkpoint_folder(root: Path, address: str, key: str) -> Path:
    """Returns where an execution of a stage keeps what outlives a kill.

    Arguments:
        root: The project's folder.
        address: The stage's name in dvc.yaml.
        key: Hash of all that decides its outputs, see `stage_key`.
    """
    return root / ".checkpoints" / f"{address}-{key[:16]}"


@contextmanager
def stage_run(
    address: str,
    root: Path,
    params: Params,
    *,
    sections: Mapping[str, BaseModel],
    inputs: Sequence[Path] = (),
    judges: str = "",
    tags: dict[str, Any] | None = None,
) -> Iterator[StageRun]:
    """Opens a tracked execution of a stage; on a clean exit writes its record.

    Its checkpoint is dropped then, or where DVC has yet to take over the outputs by the next stage that opens.

    Arguments:
        address: The stage's name in dvc.yaml.
        root: The project's folder.
        params: All params.
        sections: The sections that the stage reads, by name.
        inputs: The files that decide its outputs (a manifest stands for the shards it sums up).
        judges: Name of a part of those sections that judges the outputs and does not decide them; it
            is no part of the key, so that work goes on when it changes.
        tags: More tags for the tracker.
    """
    start = time.monotonic()
    meter = Meter(gpus_here())
    key = stage_key(address, root, sections=sections, inputs=inputs, judges=judges)
    state = open_processes()
    device = stage_device(state)
    if state.is_main_process:
        discard_settled(root)
    with open_tracker(address, root) as tracker:
        tracker.tags(_tags(address, root, params, key) | (tags or {}))
        tracker.params({name: section.model_dump(mode="json") for name, section in sections.items()})
        run = StageRun(address, root, key, tracker, device, state.is_main_process)
        with Pulse():
            yield run
            state.wait_for_everyone()
        state.wait_for_everyone()  # the process that keeps their store stays until no pulse needs it
        if run.main:
            seconds = time.monotonic() - start
            tracker.metrics({"seconds": seconds}, 0)
            write_json(record_path(root, address), _record(run, seconds, meter))
            if not is_dvcs():
                discard(run.checkpoint)


def stage_device(state: PartialState) -> torch.device:
    """Returns where a process computes; on the CPU also sets the number of threads."""
    device = torch.device(state.device or "cpu")
    if device.type == "cpu":
        # One thread gives the same bits on any machine, and is fastest for small models.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return device


def _record(run: StageRun, seconds: float, meter: Meter) -> dict[str, Any]:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cuda = run.device.type == "cuda"
    measured: dict[str, Any] = {"joules": joules} if (joules := meter.read()) else {}
    if cuda:
        measured["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(run.device) / 2**20)
    else:
        measured["threads"] = torch.get_num_threads()
    return {
        **measured,
        "stage": run.address,
        "key": run.key,
        "run_id": run.tracker.run_id,
        "seconds": round(seconds, 2),
        "peak_memory_mb": round(kib / 1024),
        "device": torch.cuda.get_device_name(run.device) if cuda else "cpu",
        "versions": {"nfm": nfm.__version__, "torch": torch.__version__},
    }


def stage_key(
    address: str, root: Path, *, sections: Mapping[str, BaseModel], inputs: Sequence[Path], judges: str
) -> str:
    """Returns the hash of all that decides a stage's outputs; arguments as for `stage_run`."""
    sources = sorted(Path(nfm.__file__).parent.rglob("*.py"))
    return digest(
        {
            "stage": address,
            "sections": {k: v.model_dump(mode="json", exclude={judges}) for k, v in sections.items()},
            "inputs": {str(path.relative_to(root)): sha256(path) for path in inputs},
            "code": [sha256(path) for path in sources],
        }
    )


def _tags(address: str, root: Path, params: Params, key: str) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    manifest = root / "artifacts" / "data" / "train" / "manifest.json"
    return {
        "stage": address.partition("@")[0],
        "dvc.stage": os.environ.get("DVC_STAGE", address),
        "dvc.stage_hash": key,
        "git.commit": commit.stdout.strip() or "none",
        "data": params.data.kind,
        "data.hash": sha256(manifest) if manifest.is_file() else "none",
        "recipe": os.environ.get("NFM_RECIPE", "params.yaml"),
    }
