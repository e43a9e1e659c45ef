"""Multi-head self-attention, over whole sequences or on from tokens that are known."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens seen so far, with room behind them for those to come.

    Attributes:
        both: Keys, then values, with shape (2, B, heads, room, head_size); behind the tokens seen are no meaningful
            numbers.
        seen: Number of tokens seen.
    """

    both: Tensor
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
        return KVCache(like.new_empty(2, count, self.heads, tokens, self.out.in_features // self.heads))

    def extend(self, x: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Attends from new tokens to those in the cache and, causally, to one another.

        Arguments:
            x: The tokens, with shape (B, n, width).
            cache: What the tokens before gave; it still holds those and no others. Both caches share their room, so
                of two extensions of one cache only the later one's is valid.

        Returns:
            The tokens' outputs, with the shape of x, and a cache that holds them too.
        """
        qkv, end = self._split(x), cache.seen + x.shape[1]
        cache.both[..., cache.seen : end, :] = qkv[1:]
        k, v = cache.both[..., :end, :]
        return self._merge(attend(qkv[0], k, v, causal=True)), KVCache(cache.both, end)

    def _split(self, x: Tensor) -> Tensor:
        """Returns queries, keys and values, with shape (3, B, heads, T, head_size)."""
        b, t, w = x.shape
        return self.to_qkv(x).reshape(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)

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
