"""Multi-head self-attention, over whole sequences or on from tokens that are known."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens seen so far, with room behind them for those to come.

    Attributes:
        key: With shape (B, heads, room, head_size); behind the tokens seen are no meaningful numbers.
        value: Likewise.
        seen: Number of tokens seen.
    """

    key: Tensor
    value: Tensor
    seen: int = 0


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
        return self._merge(attend(q, k, v, self.causal))

    def room(self, count: int, tokens: int, like: Tensor) -> KVCache:
        """Returns an empty cache for sequences of up to so many tokens, with the dtype and device of `like`."""
        shape = (count, self.heads, tokens, self.out.in_features // self.heads)
        return KVCache(like.new_empty(shape), like.new_empty(shape))

    def extend(self, x: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Attends from new tokens to those in the cache and, causally, to one another.

        Arguments:
            x: The tokens, with shape (B, n, width).
            cache: What the tokens before gave; it still holds those and no others. Both caches share their room, so
                of two extensions of one cache only the later one's is valid.

        Returns:
            The tokens' outputs, with the shape of x, and a cache that holds them too.
        """
        q, k, v = self._split(x)
        seen, end = cache.seen, cache.seen + x.shape[1]
        cache.key[:, :, seen:end], cache.value[:, :, seen:end] = k, v
        y = attend(q, cache.key[:, :, :end], cache.value[:, :, :end], causal=True)
        return self._merge(y), replace(cache, seen=end)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, w = x.shape
        qkv = self.to_qkv(x).reshape(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    r"""Evaluates :math:`\mathrm{softmax}(q k^T / \sqrt{d})\, v`.

    Arguments:
        q: Queries of the last n of T tokens, with shape (B, heads, n, d).
        k: Keys, with shape (B, heads, T, d).
        v: Values, with shape (B, heads, T, d).
        causal: Whether a token sees itself and those before it only.

    Returns:
        With the shape of q.
    """
    n, tokens = q.shape[2], k.shape[2]
    causal = causal and n > 1
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # Written out: torch's fused kernel makes a training in bf16 on a CPU up to twice as slow. And key by query, as
        # its softmax is slow over a last dimension that is short.
        scores = k @ (q * q.shape[-1] ** -0.5).transpose(2, 3)
        if causal:
            scores = scores.masked_fill(~_visible(n, tokens, q.device).T, -torch.inf)
        return scores.softmax(2).transpose(2, 3) @ v
    if causal and n < tokens:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=_visible(n, tokens, q.device))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _visible(n: int, tokens: int, device: torch.device) -> Tensor:
    return torch.ones(n, tokens, dtype=torch.bool, device=device).tril(tokens - n)
