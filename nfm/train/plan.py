"""What a training is to do, in plain values."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """Length, optimizer and upkeep of one training.

    Attributes:
        steps: Optimizer updates.
        batch: Images per update, over all processes.
        lr: Learning rate of AdamW at the end of the warm-up.
        betas: AdamW's decay of the gradient's first and second moment.
        weight_decay: AdamW's decoupled weight decay, on all parameters.
        warmup: Updates during which the learning rate rises linearly.
        final_lr: Share of `lr` at the last update, the end of a cosine.
        clip: Largest gradient norm.
        ema: Decay of the weights' moving average per update.
        precision: "no" for the model's own dtype, else that of autocast in its forward pass.
        compile: Whether torch.compile compiles the model's repeated layers, or the model that has none.
        max_skipped: Updates in a row without a finite loss and gradient that end the training.
        micro_batch: Images per process and forward pass; None for all at once.
        checkpoint_every: Updates between checkpoints; 0 for none.
        log_every: Updates between reports.
    """

    steps: int
    batch: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: int
    final_lr: float
    clip: float
    ema: float
    precision: Literal["no", "bf16", "fp16"]
    max_skipped: int
    compile: bool = False
    micro_batch: int | None = None
    checkpoint_every: int = 0
    log_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "max_skipped", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}, expected 1 or more, or None for all at once")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision is {self.precision!r}, expected 'no', 'bf16' or 'fp16'")
