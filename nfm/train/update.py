"""One optimizer update: the same for any number of processes and any division of the batch."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nfm.random import generator_for
from nfm.train.checkpoint import trainable
from nfm.train.order import Windows, batch_indices, pieces
from nfm.train.plan import Plan
from nfm.train.schedule import learning_rate
from nfm.train.sharding import agreed, is_divided, whole


@dataclass(frozen=True)
class Piece:
    """What one forward pass sees of an update's batch.

    Attributes:
        rows: Of the data set, the whole batch's, with shape (batch,), on the CPU.
        part: Its place in them.
        seed: Of the training.
        step: Number of the update, from 0.
    """

    rows: Tensor
    part: slice
    seed: int
    step: int

    @property
    def index(self) -> Tensor:
        """Its rows of the data set."""
        return self.rows[self.part]


Loss = Callable[[nn.Module, Piece, torch.Generator], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What an update did.

    Attributes:
        loss: Mean loss over the whole batch.
        grad_norm: Norm of its gradient before clipping.
        lr: The learning rate.
        applied: False where loss or gradient was not finite and the weights stayed as they were.
    """

    loss: float
    grad_norm: float
    lr: float
    applied: bool


class Updater:
    """Updates a model's weights by AdamW.

    A process takes its contiguous share of the batch and cuts it into pieces of one forward pass
    each. The loss of a piece is weighted by its number of images, so the gradient is that of the
    mean over the batch. The random draws of a piece are a function of the seed, the update and the
    place of the piece's first image in the batch.

    Arguments:
        accelerator: Gives device, processes, autocast and gradient scaling.
        model: The model, on its device; wrapped here for what the accelerator adds.
        optimizer: On the model's parameters.
        loss: Gives a piece's mean loss; see `nfm.train.loop.train`.
        plan: What to do.
        count: Images in the data set.
        seed: Of order and random draws.
        windows: How the order mixes the images; None for all with all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        plan: Plan,
        count: int,
        seed: int,
        windows: Windows | None = None,
    ) -> None:
        self._accelerator, self._optimizer, self._loss = accelerator, optimizer, loss
        self._plan, self._count, self._seed, self._windows = plan, count, seed, windows
        self._parameters = list(trainable(model).values())
        self._sharded = any(is_divided(p) for p in self._parameters)
        self._model: Any = model if self._sharded else accelerator.prepare_model(model)

    def __call__(self, step: int) -> Outcome:
        """Makes the update of a number, counted from 0."""
        plan = self._plan
        lr = learning_rate(step, steps=plan.steps, lr=plan.lr, warmup=plan.warmup, final_lr=plan.final_lr)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward(step)
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self._parameters, plan.clip, foreach=True))
        # The only time that the host waits for the device.
        loss_value, norm_value = torch.stack((loss, norm.to(loss.dtype))).tolist()
        applied = math.isfinite(loss_value) and math.isfinite(norm_value)
        if applied:
            self._optimizer.step() if scaler is None else scaler.step(self._optimizer)
        if scaler is not None:
            scaler.update()
        return Outcome(loss_value, norm_value, lr, applied)

    def all_agree(self, wish: bool) -> bool:
        """Whether this process wishes something, or, where the weights are divided, any of them."""
        return agreed(wish, self._accelerator.device) if self._sharded else wish

    def bare_model(self) -> nn.Module:
        """Returns the model without what the accelerator has added to it."""
        model = self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False, keep_torch_compile=False)
        vars(model).pop("forward", None)  # left by autocast, hides the method of the class
        return model

    def _backward(self, step: int) -> Tensor:
        """Leaves the gradient of the batch's mean loss in the parameters and returns that loss."""
        accelerator, plan = self._accelerator, self._plan
        processes = accelerator.num_processes
        rows = batch_indices(self._count, plan.batch, self._seed, step, self._windows)
        share = list(pieces(plan.batch, plan.micro_batch, accelerator.process_index, processes))
        losses = []
        for piece in share:
            waits = processes > 1 and piece is not share[-1]
            if self._sharded:
                self._model.set_requires_gradient_sync(not waits)
            with accelerator.no_sync(self._model) if waits and not self._sharded else nullcontext():
                # Gradients and losses are averaged over processes, hence their number.
                weight = (piece.stop - piece.start) * processes / plan.batch
                loss = weight * self._piece_loss(step, piece, rows)
                accelerator.backward(loss)
            losses.append(loss.detach())
        total = torch.stack(losses).sum()
        if processes > 1:
            torch.distributed.all_reduce(total)
            total = total / processes
        return total

    def _piece_loss(self, step: int, piece: slice, rows: Tensor) -> Tensor:
        counters, device = (step, piece.start), self._accelerator.device
        generator = generator_for(self._seed, *counters, device=device)
        _seed_layers(generator_for(self._seed, *counters, 1).initial_seed(), device)
        with self._accelerator.autocast() if self._sharded else nullcontext():  # else it is in the model's call
            loss = self._loss(self._model, Piece(rows, piece, self._seed, step), generator)
        if loss.ndim:
            raise ValueError(f"loss has shape {tuple(loss.shape)}, expected a scalar; take the mean")
        return loss


def _seed_layers(seed: int, device: torch.device) -> None:
    """Seeds what dropout and its like draw from."""
    # Not torch.manual_seed: where CUDA is idle that keeps a stack trace for every call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
