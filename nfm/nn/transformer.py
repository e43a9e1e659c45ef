"""Transformer layers: pre-norm, and modulated by a condition (adaLN-zero)."""

from torch import Tensor, nn
from torch.nn import functional

from nfm.nn.attention import Attention, KVCache


class MLP(nn.Sequential):
    """Two linear maps with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, head_size: int, causal: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, head_size, causal)
        self.mlp = nn.Sequential(nn.LayerNorm(width), MLP(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens, with shape (B, T, width), to the same shape."""
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)

    def step(self, x: Tensor, cache: KVCache | None) -> tuple[Tensor, KVCache]:
        """Maps one new token, with shape (B, 1, width), given the tokens before it."""
        y, cache = self.attention.step(self.norm(x), cache)
        x = x + y
        return x + self.mlp(x), cache


class ModulatedLayer(nn.Module):
    """A transformer layer whose norms are shifted, scaled and gated from outside (adaLN).

    References:
        Scalable Diffusion Models with Transformers (Peebles & Xie, 2023). https://arxiv.org/abs/2212.09748
    """

    def __init__(self, width: int, head_size: int) -> None:
        super().__init__()
        self.width = width
        self.attention = Attention(width, head_size, causal=False)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Maps tokens to the same shape.

        Arguments:
            x: Tokens, with shape (B, T, width).
            modulation: Shift, scale and gate of attention and MLP, with shape (B, 6, width).
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unsqueeze(2).unbind(1)
        x = x + gate_a * self.attention(modulate(x, shift_a, scale_a))
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises each token, then scales by 1 + scale and shifts."""
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
