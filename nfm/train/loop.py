"""The training loop, for one process or many, which goes on from where it was killed."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from nfm.errors import InputError
from nfm.train.checkpoint import Checkpoint, Tally, checkpoint_path, trainable
from nfm.train.ema import Average
from nfm.train.launch import compile_backend, open_accelerator
from nfm.train.notice import Notice, Stopped
from nfm.train.order import Windows
from nfm.train.plan import Plan
from nfm.train.progress import Display
from nfm.train.sharding import gathered, shard, sharding_wanted
from nfm.train.update import Loss, Outcome, Updater

Report = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        model: The model with its last weights, in evaluation mode.
        ema: The model with its averaged weights, in evaluation mode and without gradients.
        steps: Updates, the skipped ones among them.
        skipped: Updates skipped because loss or gradient was not finite.
        loss: Mean loss over the updates of the last report; nan if none was ever finite.
        seconds: Time spent, that of killed predecessors up to their last checkpoint included.
    """

    model: nn.Module
    ema: nn.Module
    steps: int
    skipped: int
    loss: float
    seconds: float


def train(
    model: nn.Module,
    loss: Loss,
    *,
    count: int,
    plan: Plan,
    seed: int,
    windows: Windows | None = None,
    folder: Path | None,
    key: str,
    report: Report,
    name: str,
) -> Trained:
    """Trains a copy of a model by AdamW and averages its weights.

    Where the folder holds the checkpoint of a killed training of the same key, goes on from it; on
    the CPU the result has the same bits as without the kill. Under `accelerate launch` every
    process calls this function; the batch stays that of the plan, and one process alone writes,
    prints and reports.

    SIGTERM ends it after the update under way, which is saved first where there is a folder. Of several
    processes the one that writes ends so; the others go on until they miss it or are killed.

    Arguments:
        model: The model with its first weights, the same in all processes.
        loss: Called as loss(model, piece, generator) with the model (its forward pass under
            autocast where the plan says so), what one forward pass sees of the batch (piece.index
            are its dataset rows) and a generator on the model's device; returns the mean loss of those rows.
        count: Images in the data set.
        plan: What to do.
        seed: Of order and random draws.
        windows: How the order mixes the images; None for all with all.
        folder: Where the checkpoint is kept; None for none.
        key: Names what decides the result: params, data, code.
        report: Called as report(metrics, step) every `plan.log_every` updates and at the end, with
            loss (mean since the last report), grad_norm, lr, skipped and images_per_second, those
            that are finite, and the number of updates behind it.
        name: What is trained, for messages.

    Raises:
        InputError: The loss stays without a finite value, the checkpoint is corrupt or of another
            training, the disk is full, or the plan does not go with the device or the number of
            processes.
        Stopped: SIGTERM has come.
    """
    accelerator = open_accelerator(plan.precision, plan.compile)
    _check_processes(name, plan, accelerator.num_processes)
    sharded = sharding_wanted()
    mine, average = _placed(model, plan, accelerator, name, sharded)
    optimizer = torch.optim.AdamW(
        trainable(mine).values(), plan.lr, plan.betas, weight_decay=plan.weight_decay, fused=True
    )
    saved, main = None, accelerator.is_main_process
    if folder is not None:
        path = checkpoint_path(folder)
        saved = Checkpoint(path, key, mine, average, optimizer, accelerator.scaler, writes=main)
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        tally = Tally() if saved is None else saved.load()
        update = Updater(accelerator, mine, optimizer, loss, plan, count, seed, windows)
        with Notice() as notice, Display(name, plan.steps, tally.step, shown=main) as display:
            watch = _Watch(display, report if main else None, plan, tally)
            if not main and not sharded:
                saved = notice = None
            tally = _run(update, average, saved, tally, plan, watch, name, notice)
    loss_mean = math.nan if tally.loss is None else tally.loss
    bare, ema = update.bare_model().eval(), average.module
    if sharded:
        model = model.to(accelerator.device)
        bare, ema = gathered(model, bare), gathered(model, ema)
    return Trained(bare, ema, tally.step, tally.skipped, loss_mean, watch.seconds())


def _placed(
    model: nn.Module, plan: Plan, accelerator: Accelerator, name: str, sharded: bool
) -> tuple[nn.Module, Average]:
    """Returns a copy of a model to train, on its device, and its average; both divided over processes where asked."""
    mine = copy.deepcopy(model).to(accelerator.device).train()
    average = Average(mine, plan.ema)
    if sharded:
        _check_sharding(name, plan)
        shard(mine, accelerator.device, compile_backend(accelerator))
        shard(average.module, accelerator.device)
        average.follow(mine)
    return mine, average


class _Watch:
    """Shows and reports updates, and knows the time."""

    def __init__(self, display: Display, report: Report | None, plan: Plan, tally: Tally) -> None:
        self._display, self._report, self._batch = display, report, plan.batch
        self._before, self._began = tally.seconds, time.monotonic()
        self._last = (tally.step, self._began)

    def update(self, tally: Tally, outcome: Outcome) -> None:
        self._display.update(tally.step, outcome.loss)

    def report(self, tally: Tally, outcome: Outcome) -> None:
        (step, since), now = self._last, time.monotonic()
        self._last = (tally.step, now)
        mean = tally.mean()
        self._display.line(tally.step, mean)
        if self._report is None:
            return
        metrics = {
            "loss": math.nan if mean is None else mean,
            "grad_norm": outcome.grad_norm,
            "lr": outcome.lr,
            "skipped": float(tally.skipped),
            "images_per_second": self._batch * (tally.step - step) / max(now - since, 1e-9),
        }
        # A tracker's database need not hold nan; what is missing says the same.
        self._report({k: v for k, v in metrics.items() if math.isfinite(v)}, tally.step)

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began


def _run(
    update: Updater,
    average: Average,
    saved: Checkpoint | None,
    tally: Tally,
    plan: Plan,
    watch: _Watch,
    name: str,
    notice: Notice | None,
) -> Tally:
    for step in range(tally.step, plan.steps):
        outcome = update(step)
        tally = tally.after(outcome.loss, outcome.applied)
        if outcome.applied:
            average.update()
        elif tally.in_a_row >= plan.max_skipped:
            raise _diverged(name, tally, outcome)
        watch.update(tally, outcome)
        if _is_due(plan.log_every, tally.step, plan.steps):
            watch.report(tally, outcome)
            tally = tally.reported()
        stops = notice is not None and update.all_agree(notice.given)
        if saved is not None and (stops or _is_due(plan.checkpoint_every, tally.step, plan.steps)):
            saved.save(replace(tally, seconds=watch.seconds()))
        if stops:
            raise Stopped
    return tally


def _is_due(every: int, step: int, steps: int) -> bool:
    return every > 0 and (step % every == 0 or step == steps)


def _check_processes(name: str, plan: Plan, processes: int) -> None:
    if processes > plan.batch:
        raise InputError(
            f"{name}: batch is {plan.batch}, expected one image or more for each of the "
            f"{processes} processes; raise batch or start fewer processes"
        )


def _check_sharding(name: str, plan: Plan) -> None:
    if plan.precision == "fp16":
        raise InputError(
            f"{name}: precision is 'fp16', which does not go with weights that are divided (FSDP2); set it to "
            "'bf16' or 'fp32', or let every process hold the whole model"
        )


def _diverged(name: str, tally: Tally, outcome: Outcome) -> InputError:
    return InputError(
        f"{name}: loss or gradient was not finite in {tally.in_a_row} updates in a row, at update "
        f"{tally.step} with loss {outcome.loss:.3g} and gradient norm {outcome.grad_norm:.3g}; "
        "lower lr or clip, lengthen warmup, or set precision to 'bf16' or 'fp32' instead of 'fp16'"
    )
