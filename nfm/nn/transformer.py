"""Transformer layers: pre-norm, and modulated by a condition (adaLN)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfm.nn.attention import Attention, KVCache


class MLP(nn.Sequential):
    """Two linear maps with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        # The exact GELU: on CPU its tanh approximation takes nearly twice the time.
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, input: Tensor) -> Tensor:
        """Maps tokens, with shape (B, T, width), to the same shape."""
        first, gelu, last = self
        h = first(input)
        # Where no gradient needs h, in place: a second tensor of its size costs more time than the GELU itself.
        return last(gelu(h) if torch.is_grad_enabled() else torch.ops.aten.gelu_(h))


class Layer(nn.Module):
    """A pre-norm transformer layer.

    Arguments:
        width: Numbers per token; a multiple of head_size.
        head_size: Numbers per attention head.
        causal: Whether token i sees tokens 0..i only.
    """

    def __init__(self, width: int, head_size: int, causal: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, head_size, causal)
        self.mlp = nn.Sequential(nn.LayerNorm(width), MLP(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens, with shape (B, T, width), to the same shape."""
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)

    def extend(self, x: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Maps new tokens, with shape (B, n, width), given the tokens before them.

        Returns:
            The tokens' outputs, and a cache that holds them too; see `Attention.extend`.
        """
        y, grown = self.attention.extend(self.norm(x), cache)
        x = x + y
        return x + self.mlp(x), grown


class ModulatedLayer(nn.Module):
    """A transformer layer whose norms are shifted, scaled and gated from outside (adaLN).

    Where all six modulations are zero the layer is the identity.

    References:
        Scalable Diffusion Models with Transformers (Peebles & Xie, 2023).
        https://arxiv.org/abs/2212.09748

    Arguments:
        width: Numbers per token; a multiple of head_size.
        head_size: Numbers per attention head.
    """

    def __init__(self, width: int, head_size: int) -> None:
        super().__init__()
        self.attention = Attention(width, head_size, causal=False)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        """Maps tokens to the same shape.

        Arguments:
            x: Tokens, with shape (B, T, width).
            modulation: Shift, scale and gate of the attention, then of the MLP: six tensors, each
                with shape (B, 1, width).
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = torch.addcmul(x, gate, self.attention(modulate(x, shift, scale)))
        return torch.addcmul(x, mlp_gate, self.mlp(modulate(x, mlp_shift, mlp_scale)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises each token, with shape (B, T, width), scales it by 1 + scale and shifts it."""
    width = x.shape[-1:]
    # On a CPU torch's loop is vectorised only where it is given weights; these change no bit.
    weight, bias = (x.new_ones(width), x.new_zeros(width)) if x.device.type == "cpu" else (None, None)
    return torch.addcmul(shift, functional.layer_norm(x, width, weight, bias), 1 + scale)
