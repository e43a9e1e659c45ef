"""The state of an unfinished training in one file, replaced as a whole and free of pickle."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfm.artifacts import load_tensors, save_tensors
from nfm.errors import InputError
from nfm.train.ema import Average
from nfm.train.sharding import divided, whole
from nfm.train.streams import restore_streams, stream_states

FORMAT = "nfm-checkpoint-2"


@dataclass(frozen=True)
class Tally:
    """How far a training is.

    Attributes:
        step: Updates behind it, the skipped ones among them.
        skipped: Updates skipped because loss or gradient was not finite.
        in_a_row: Those since the last update that was not skipped.
        loss_sum: Sum of the losses since the last report, without those of skipped updates.
        loss_count: Their number.
        loss: Mean loss of the last report that had one; None before the first.
        seconds: Time spent, that of killed predecessors up to their last checkpoint included.
    """

    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    loss: float | None = None
    seconds: float = 0.0

    def after(self, loss: float, applied: bool) -> "Tally":
        """Returns the tally one update later."""
        return replace(
            self,
            step=self.step + 1,
            skipped=self.skipped + (not applied),
            in_a_row=0 if applied else self.in_a_row + 1,
            loss_sum=self.loss_sum + (loss if applied else 0.0),
            loss_count=self.loss_count + applied,
        )

    def mean(self) -> float | None:
        """Returns the mean loss since the last report; None if every update was skipped."""
        return self.loss_sum / self.loss_count if self.loss_count else None

    def reported(self) -> "Tally":
        """Returns the tally with that mean taken and the sums set back."""
        mean = self.mean()
        return replace(self, loss=self.loss if mean is None else mean, loss_sum=0.0, loss_count=0)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next update depends on, tied to the file that it is kept in.

    The learning rate is not kept: it is a function of the update. So are all random draws of ours; the global random
    streams are kept for what others draw, those of the process that saves.

    Attributes:
        path: The file.
        key: Names what decides the result: params, data, code. Another key's file is refused.
        model: The trained model, unwrapped.
        average: Its moving average.
        optimizer: AdamW on the parameters of `model` that need gradients, in the model's order.
        scaler: The gradient scaler of fp16, else None.
        writes: Whether this process writes the file. Where weights are divided over processes all of them save.
    """

    path: Path
    key: str
    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    scaler: Any = None
    writes: bool = True

    def save(self, tally: Tally) -> None:
        """Replaces the file.

        Raises:
            InputError: No space is left on the device.
        """
        streams, rest = stream_states()
        header = {
            "format": FORMAT,
            "key": self.key,
            "tally": asdict(tally),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "streams": rest,
        }
        tensors = self._tensors() | {f"streams/{name}": state for name, state in streams.items()}
        if self.writes:
            save_tensors(self.path, tensors, header)

    def load(self) -> Tally:
        """Restores the state, where there is a file.

        Raises:
            InputError: The file is corrupt, or belongs to another training.
        """
        for stale in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            stale.unlink(missing_ok=True)  # what a killed process was writing
        if not self.path.exists():
            return Tally()
        tensors, header = load_tensors(self.path)
        if header.get("key") != self.key or header.get("format") != FORMAT:
            raise InputError(
                f"{self.path} is the checkpoint of a training with other params, data or code; "
                "delete it to start afresh, or restore them to go on from it"
            )
        try:
            self._restore(tensors, header)
            return Tally(**header["tally"])
        except (RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path} does not fit the model ({reason}); delete it to start afresh") from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model/{name}": whole(value) for name, value in self.model.state_dict().items()}
        for name, value in self.average.module.state_dict().items():
            tensors[f"average/{name}"] = whole(value)
        for name, parameter in trainable(self.model).items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{kind}/{name}"] = whole(value)
        return tensors

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        for prefix, model in (("model/", self.model), ("average/", self.average.module)):
            mine = model.state_dict()
            found = _below(prefix, tensors)
            model.load_state_dict({k: divided(v, mine[k]) if k in mine else v for k, v in found.items()})
        state = {number: {} for number in range(len(trainable(self.model)))}
        parameters = trainable(self.model)
        numbers = {name: number for number, name in enumerate(trainable(self.model))}
        for path, value in _below("optimizer/", tensors).items():
            kind, _, name = path.partition("/")
            parameter = parameters[name]
            state[numbers[name]][kind] = divided(value, parameter) if value.shape == parameter.shape else value
        content = self.optimizer.state_dict()
        filled = {number: values for number, values in state.items() if values}
        self.optimizer.load_state_dict({**content, "state": filled})
        if self.scaler is not None:
            self.scaler.load_state_dict(header["scaler"])
        restore_streams(_below("streams/", tensors), header["streams"])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that need gradients by name, in the model's order."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def checkpoint_path(folder: Path) -> Path:
    """Returns the checkpoint's file in a training's folder."""
    return folder / "checkpoint.safetensors"


def discard(folder: Path) -> None:
    """Removes a finished training's folder, where there is one."""
    if folder.exists():
        shutil.rmtree(folder)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
