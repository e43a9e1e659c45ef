"""Multi-head self-attention, whole sequences or one token at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens seen so far, each with shape (B, heads, seen, head_size)."""

    key: Tensor
    value: Tensor


class Attention(nn.Module):
    """Scaled dot-product self-attention of several heads.

    References:
        Attention Is All You Need (Vaswani et al., 2017). https://arxiv.org/abs/1706.03762

    Arguments:
        width: Numbers per token; a multiple of head_size.
        head_size: Numbers per head.
        causal: Whether token i sees tokens 0..i only.
    """

    def __init__(self, width: int, head_size: int, causal: bool) -> None:
        super().__init__()
        if width % head_size:
            raise ValueError(f"head_size is {head_size}, expected a divisor of width = {width}")
        self.heads = width // head_size
        self.causal = causal
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over whole sequences, with shape (B, T, width), to the same shape."""
        q, k, v = self._split(x)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: KVCache | None) -> tuple[Tensor, KVCache]:
        """Attends from one new token to itself and to those in the cache.

        Arguments:
            x: The token, with shape (B, 1, width).
            cache: What earlier steps returned, or None at the first token.

        Returns:
            The token's output, and a new cache that holds it too; the one given is not changed.
        """
        q, k, v = self._split(x)
        if cache is not None:
            k, v = torch.cat([cache.key, k], 2), torch.cat([cache.value, v], 2)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)), KVCache(k, v)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, w = x.shape
        qkv = self.to_qkv(x).reshape(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v
