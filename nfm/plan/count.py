"""Parameters and FLOPs of the networks, counted on the meta device: shapes only, no memory, no arithmetic.

A multiply and an add are two FLOPs. Matrix products, attention and convolutions count, what is done element by element
does not. Causal attention counts in full, as most kernels compute it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nfm.metrics.features import Classifier
from nfm.student.velocity import SiT
from nfm.teacher.autoregressive import AutoregressiveBlock
from nfm.teacher.tarflow import TarFlow

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """What a call costs.

    Attributes:
        flops: Of one image.
        operations: Those that are launched one by one, for a batch as for an image; views are none.
    """

    flops: int
    operations: int


def on_meta(make: Callable[[], Model]) -> Model:
    """Builds a model without memory for its weights."""
    with torch.device("meta"):
        return make()


def parameters(model: nn.Module) -> int:
    """Returns the number of weights that are trained."""
    return sum(value.numel() for value in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of the weights in a file, tensors alone."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def encode_cost(teacher: TarFlow) -> Cost:
    """Counts encoding."""
    return _count(lambda: teacher.encode(*_example(teacher)))


def likelihood_step_cost(teacher: TarFlow) -> Cost:
    """Counts an update of the teacher: forward and backward."""

    def step() -> None:
        z, log_det = teacher(*_example(teacher))
        (z.square().mean() - log_det.mean()).backward()

    return _count(step)


def denoise_cost(teacher: TarFlow) -> Cost:
    """Counts denoising: the gradient of the density with respect to the image."""

    def step() -> None:
        x, label = _example(teacher)
        torch.autograd.grad(teacher.log_prob(x.requires_grad_(), label).sum(), x)

    teacher.requires_grad_(False)
    cost = _count(step)
    teacher.requires_grad_(True)
    return cost


def decode_cost(teacher: TarFlow) -> Cost:
    """Counts decoding, token after token.

    A pass costs the same for every token but for the attention to those before it, which grows evenly: the mean pass is
    the mean of the first and the last.
    """
    block, passes = first_block(teacher), decode_passes(teacher)
    first, last = (_count(lambda seen=seen: _decode_step(block, seen)) for seen in (0, len(block.position) - 1))
    return Cost(passes * (first.flops + last.flops) // 2, passes * last.operations)


def decode_passes(teacher: TarFlow) -> int:
    """Returns how many passes through one block decoding takes, each waiting for the one before it."""
    return len(teacher.blocks) * len(first_block(teacher).position)


def first_block(teacher: TarFlow) -> AutoregressiveBlock:
    """Returns a block; all are alike."""
    block = teacher.blocks[0]
    assert isinstance(block, AutoregressiveBlock)
    return block


def velocity_cost(student: SiT) -> Cost:
    """Counts one network evaluation."""
    return _count(lambda: student(*_moment(student)))


def matching_step_cost(student: SiT) -> Cost:
    """Counts an update of the student: forward and backward."""
    return _count(lambda: student(*_moment(student)).square().mean().backward())


def features_cost(classifier: Classifier, shape: tuple[int, int, int]) -> Cost:
    """Counts an image's features."""
    return _count(lambda: classifier.features(torch.zeros(1, *shape, device="meta")))


def pixels_cost(autoencoder: nn.Module, shape: tuple[int, int, int], *, decode: bool) -> Cost:
    """Counts the way from pixels to a latent, or back.

    Arguments:
        autoencoder: diffusers' AutoencoderKL.
        shape: Of what goes in, (C, H, W).
        decode: Whether that is a latent.
    """
    call: Any = autoencoder.decode if decode else autoencoder.encode
    with torch.no_grad():
        return _count(lambda: call(torch.zeros(1, *shape, device="meta")))


def classify_cost(classifier: Classifier, shape: tuple[int, int, int]) -> Cost:
    """Counts telling an image's class."""
    return _count(lambda: classifier(torch.zeros(1, *shape, device="meta")))


def classifier_step_cost(classifier: Classifier, shape: tuple[int, int, int]) -> Cost:
    """Counts an update of the classifier: forward and backward."""
    return _count(lambda: classifier(torch.zeros(1, *shape, device="meta")).sum().backward())


class _Operations(TorchDispatchMode):
    """Counts what is called but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _count(call: Callable[[], object]) -> Cost:
    with FlopCounterMode(display=False) as flops, _Operations() as operations:
        call()
    return Cost(flops.get_total_flops(), operations.count)


def _example(model: TarFlow | SiT) -> tuple[Tensor, Tensor | None]:
    label = None if model.classes is None else torch.zeros(1, dtype=torch.long, device="meta")
    return torch.zeros(1, *model.shape, device="meta"), label


def _moment(student: SiT) -> tuple[Tensor, Tensor, Tensor | None]:
    x, label = _example(student)
    return x, torch.zeros(1, device="meta"), label


@torch.no_grad()
def _decode_step(block: AutoregressiveBlock, seen: int) -> None:
    """Decodes a token after `seen` + 1 others, the last of which is not in the cache yet."""
    token = torch.zeros(1, 1, block.project.in_features, device="meta")
    cache = tuple(replace(layer, seen=seen) for layer in block.room(1, token))
    block.decode_step(token, seen + 1, None, cache)
