"""SiT's velocity and one update of its training."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from benchmarks.baseline.transformer import attention, linear, mlp, normalise
from nfm.nn.patches import patchify, unpatchify
from nfm.nn.transformer import ModulatedLayer
from nfm.student.velocity import SiT


def velocity(model: SiT, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """Evaluates the velocity; shapes as in `SiT.forward`."""
    width = model.position.shape[1]
    angles = t[:, None] * model.time.frequencies
    first, _, last = model.time.net
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    condition = linear(last, silu(linear(first, torch.cat([angles.cos(), angles.sin()], 1))))
    if model.label is not None:
        table = model.label.table.weight
        condition = condition + (table[-1:] if label is None else table[label])
    parts = linear(model.modulation, silu(condition)).split(width, 1)
    h = linear(model.project, patchify(x, model.patch)) + model.position
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, ModulatedLayer)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            part[:, None] for part in parts[6 * number : 6 * number + 6]
        )
        h = h + gate * attention(layer.attention, (1 + scale) * normalise(h) + shift)
        h = h + mlp_gate * mlp(layer.mlp, (1 + mlp_scale) * normalise(h) + mlp_shift)
    shift, scale = (part[:, None] for part in parts[-2:])
    return unpatchify(linear(model.head, (1 + scale) * normalise(h) + shift), model.shape, model.patch)


class Training:
    """Updates by AdamW, a parameter at a time, as its paper writes it down.

    Arguments:
        model: Updated in place.
        lr: The learning rate.
        betas: Decay of the gradient's first and second moment.
        weight_decay: Decoupled weight decay.
    """

    def __init__(self, model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        self._parameters = list(model.parameters())
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self._parameters]
        self._lr, self._betas, self._decay, self._step = lr, betas, weight_decay, 0

    def update(self, loss: Tensor) -> None:
        """Moves the parameters by the gradient of a loss."""
        gradients = torch.autograd.grad(loss, self._parameters)
        self._step += 1
        first, second = self._betas
        with torch.no_grad():
            for p, g, (m, v) in zip(self._parameters, gradients, self._moments, strict=True):
                m.copy_(first * m + (1 - first) * g)
                v.copy_(second * v + (1 - second) * g.square())
                mean, square = m / (1 - first**self._step), v / (1 - second**self._step)
                p.copy_(p - self._lr * self._decay * p - self._lr * mean / (square.sqrt() + 1e-8))


def loss(model: SiT, data: Tensor, noise: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """Evaluates the mean of (v(x_t, t) - (z - x))^2."""
    time = t[:, None, None, None]
    x_t = (1 - time) * data + time * noise
    return (velocity(model, x_t, t, label) - (noise - data)).square().mean()
