"""A teacher's coupling: its draws encoded shard by shard, its card, and the folder that a student reads."""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from nfm.artifacts import read_json, sha256, write_json
from nfm.build.checks import check_shape
from nfm.build.teacher import TrainedTeacher, load_teacher
from nfm.config import Gate, TeacherCoupling
from nfm.coupling.card import looked_at, measure
from nfm.coupling.diagnostics import round_trip_error
from nfm.coupling.gate import Thresholds
from nfm.coupling.shards import Shard, locked, plan_shards, read_sidecar, write_shard
from nfm.coupling.teacher import encode, encode_draws
from nfm.data.shards import Split
from nfm.figures import draw_card
from nfm.random import generator_for
from nfm.store import Rows, open_rows

ONLINE_DRAWS = 16  # noised copies of an image that measure a coupling which stores none
ONLINE_IMAGES = 10_000  # images, at most, that do so
CARD = "nfm-card-1"


@dataclass(frozen=True)
class Draws:
    """The draws of a coupling while they are made, in a folder that outlives the process.

    Attributes:
        work: The folder: shards and their sidecars.
        split: The training images.
        path: The teacher's file.
        teacher: The teacher.
        online: Whether students encode draws of their own; then only what the card looks at is stored.
        draws: Noised copies of each image that are encoded.
        shards: How the images are divided.
        seed: Seed of the noise.
        device: Where to compute.
        bf16: Whether the teacher's matrix products are in bfloat16.
    """

    work: Path
    split: Split
    path: Path
    teacher: TrainedTeacher
    online: bool
    draws: int
    shards: list[Shard]
    seed: int
    device: torch.device
    bf16: bool

    def encode(self, batch: int, state: PartialState, report: Callable[[dict[str, float], int], None]) -> None:
        """Encodes this process's share of the shards that are not finished; waits for the others.

        Arguments:
            batch: Copies encoded at once. Shards are divided into batches one by one, so that the bits
                of a shard depend neither on the others nor on who encodes it.
            state: This process among all of them.
            report: Called with the number of images after each of this process's shards.
        """
        mine, step = slice(state.process_index, None, state.num_processes), max(1, batch // self.draws)
        self.work.mkdir(parents=True, exist_ok=True)
        for shard in self.shards[mine]:
            read_sidecar(self.work, shard, verify=True)  # takes the sidecar of a damaged one away
        state.wait_for_everyone()
        missing = [shard for shard in self.shards if read_sidecar(self.work, shard, verify=False) is None]
        state.wait_for_everyone()  # until all have looked, so that they agree on what is missing
        for shard in missing[mine]:
            self._encode(shard, step)
            report({"encoded_images": float(shard.rows.stop)}, shard.number)
        state.wait_for_everyone()

    def encode_share(self, index: int, count: int, batch: int) -> Iterator[Shard]:
        """Encodes those shards of a share that are not finished, without waiting for other shares.

        Arguments:
            index: Which share, from 0: shards `index`, `index + count` and so on.
            count: Among how many processes, started by whomever, the shards are shared.
            batch: As for `encode`.

        Yields:
            Each shard once it is there.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        for shard in self.shards[index::count]:
            read_sidecar(self.work, shard, verify=True)  # takes the sidecar of a damaged one away
            self._encode(shard, max(1, batch // self.draws))
            yield shard

    def sigma(self) -> float:
        """Returns sigma_f over all that is encoded."""
        total = math.fsum(read_json(shard.sidecar(self.work))["squares"] for shard in self.shards)
        return (total / (self._images() * self.draws * math.prod(self.split.shape))) ** 0.5

    def write_card(self) -> dict[str, Any]:
        """Measures the noise, see `nfm.coupling.card.measure`, and writes card.json and card.png beside the shards."""
        images, each = looked_at(self._images(), self.draws)
        rows, sigma, label = torch.arange(images), self.sigma(), self._labels(torch.arange(images))
        noise = open_noise(self.work, self.entries(), self.shards[0].draws, self.split.shape)
        index = (rows.repeat_interleave(each).numpy(), np.tile(np.arange(each), images))
        z = torch.from_numpy(noise.take(*index).astype(np.float32)).unflatten(0, (images, each)) / sigma
        card = {
            "format": CARD,
            "kind": "teacher",
            "teacher": sha256(self.path),
            "draws": "online" if self.online else self.draws,
            "images": self._images(),
            "sigma": sigma,
            **self._errors(),
            **measure(z, label, self.split.classes, seed=self.seed),
        }
        write_json(self.work / "card.json", card)
        draw_card(card, self.work / "card.png")
        return card

    def entries(self) -> list[dict[str, Any]]:
        """Returns the entries of the shards with noise, as coupling.json lists them."""
        sidecars = [read_json(shard.sidecar(self.work)) for shard in self.shards if shard.images]
        return [{key: sidecar[key] for key in ("file", "bytes", "sha256", "count")} for sidecar in sidecars]

    def fill(self, folder: Path) -> dict[str, Any]:
        """Puts what students need into a folder; returns what coupling.json says of it.

        The work folder keeps its shards, so that a kill on the way costs nothing.
        """
        settings = {"sigma": self.sigma(), "images": len(self.split)}
        for name in ("card.json", "card.png"):
            shutil.copyfile(self.work / name, folder / name)
        if self.online:
            shutil.copyfile(self.path, folder / "teacher.safetensors")
            return settings
        entries = self.entries()
        for entry in entries:
            try:
                os.link(self.work / entry["file"], folder / entry["file"])  # no second copy of terabytes
            except OSError:
                shutil.copyfile(self.work / entry["file"], folder / entry["file"])
        return {**settings, "shards": entries}

    def _encode(self, shard: Shard, step: int) -> None:
        """Encodes a shard unless another process, such as one whose flow run was killed, has done so meanwhile."""
        with locked(self.work, shard):
            if read_sidecar(self.work, shard, verify=False) is None:
                write_shard(self.work, shard, self._batches(shard, step))

    def _batches(self, shard: Shard, step: int) -> Iterator[Tensor]:
        for rows in torch.tensor(shard.rows).split(step):
            label = self._labels(rows)
            yield encode_draws(
                self.teacher.model,
                self.split.images(rows).to(self.device),
                None if label is None else label.to(self.device),
                noise_std=self.teacher.noise_std,
                draws=self.draws,
                seed=self.seed,
                first=int(rows[0]),
                bf16=self.bf16,
            )

    def _images(self) -> int:
        """Returns how many images are encoded, from the first; they are in no order."""
        return self.shards[-1].rows.stop

    def _labels(self, rows: Tensor) -> Tensor | None:
        return self.split.labels(rows) if self.teacher.conditional else None

    def _errors(self) -> dict[str, float]:
        """Measures decode(encode(x)) - x in float32, and what bfloat16 changes in f(x) / sigma_f, rms.

        Both on the first 200 images, which are shuffled, with noise.
        """
        rows = torch.arange(min(200, len(self.split)))
        x, label = self.split.images(rows), self._labels(rows)
        eps = torch.randn(x.shape, generator=generator_for(self.seed, 0))
        noisy = (x + self.teacher.noise_std * eps).to(self.device)
        label = None if label is None else label.to(self.device)
        found = {"round_trip": round_trip_error(self.teacher.model, noisy, label), "rounding": 0.0}
        if self.bf16:
            with torch.no_grad():
                rounded, exact = (encode(self.teacher.model, noisy, label, bf16) for bf16 in (True, False))
            found["rounding"] = (rounded - exact).square().mean().sqrt().item() / self.sigma()
        return found


def open_draws(
    section: TeacherCoupling,
    work: Path,
    split: Split,
    teacher: Path,
    *,
    seed: int,
    device: torch.device,
) -> Draws:
    """Plans a coupling's draws; those that the work folder holds already are kept.

    Arguments:
        section: The coupling's section.
        work: Folder for the shards; another teacher or section needs another one.
        split: The training images.
        teacher: The teacher's file.
        seed: Seed of the noise.
        device: Where to compute.
    """
    trained = load_teacher(teacher, device)
    check_shape(teacher, trained.model.shape, split.shape)
    online = section.draws == "online"
    draws = ONLINE_DRAWS if section.draws == "online" else section.draws
    count = min(len(split), ONLINE_IMAGES) if online else len(split)
    stored = looked_at(count, draws) if online else (count, draws)
    size = math.prod(split.shape)
    shards = plan_shards(count, draws, size, stored=stored, shard_bytes=round(1e6 * section.shard_mb))
    bf16 = section.precision == "bf16"
    return Draws(work, split, teacher, trained, online, draws, shards, seed, device, bf16)


def open_noise(
    folder: Path, entries: list[dict[str, Any]], draws: int, shape: tuple[int, ...], verify: bool = False
) -> Rows:
    """Maps the noise shards of a folder.

    Raises:
        InputError: A file is missing or damaged.
    """
    again = f"delete {folder} and run the stage couple again"
    return open_rows(folder, entries, np.float16, (draws, *shape), verify=verify, again=again)


def thresholds(gate: Gate) -> Thresholds:
    """Returns a section's thresholds as plain values."""
    return Thresholds(**gate.model_dump(exclude={"allow"}))
