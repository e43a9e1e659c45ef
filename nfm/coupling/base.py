"""What a coupling is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images as they are read.

    Attributes:
        index: Their rows in the data set, with shape (B,), on the CPU.
        data: Images, with shape (B, C, H, W).
        label: Class labels, with shape (B,), or None.
        whole: The batch that they are a part of, in training; None where they are not known to be one.
    """

    index: Tensor
    data: Tensor
    label: Tensor | None
    whole: "Whole | None" = None


@dataclass(frozen=True)
class Whole:
    """The batch of an update, of which each forward pass of each process takes a part.

    Attributes:
        read: Reads it.
        part: The place of the part in it.
        seed: Of the training.
        step: Number of the update.
    """

    read: Callable[[], Batch]
    part: slice
    seed: int
    step: int


@dataclass(frozen=True)
class Redraw:
    """Pairs whose noise the student's loss draws anew.

    Attributes:
        share: Of the pairs, in [0, 1].
        below: Time in (0, 1] from which on there are none.
    """

    share: float = 0.0
    below: float = 1.0


@dataclass(frozen=True)
class Pairs:
    """Endpoints of paths.

    Attributes:
        data: Endpoints at t = 0, with shape (B, C, H, W).
        noise: Endpoints at t = 1, of that shape.
        label: Class labels of the data, with shape (B,), or None.
    """

    data: Tensor
    noise: Tensor
    label: Tensor | None


class Coupling(ABC):
    """A joint distribution of data and noise.

    Over many batches the data of its pairs are distributed as the data set's, with their labels,
    and the noise as N(0, I), exactly or as nearly as a fitted coupling comes.

    Attributes:
        one_step: Whether a student of the pairs learns a single step from t = 1 to 0, and no flow.
        redraw: Pairs whose noise the student's loss draws anew, since it depends on the time.
    """

    one_step = False
    redraw = Redraw()

    @abstractmethod
    def pair(self, batch: Batch, generator: torch.Generator) -> Pairs:
        """Draws one pair for each row of a batch, which is not changed.

        Arguments:
            batch: Images drawn uniformly from the data set.
            generator: Source of all randomness, on the data's device.
        """


def full_precision(data: Tensor) -> torch.autocast:
    """Suspends mixed precision on the data's device: endpoints are not to be rounded."""
    return torch.autocast(data.device.type, enabled=False)


def normal_like(data: Tensor, generator: torch.Generator) -> Tensor:
    """Draws standard normal noise with the shape, device and dtype of `data`."""
    return torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
