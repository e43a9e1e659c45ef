"""One causal transformer as a bijection on sequences of tokens."""

import torch
from torch import Tensor, nn

from nfm.nn.attention import KVCache
from nfm.nn.embed import LabelEmbedding
from nfm.nn.transformer import Layer
from nfm.teacher.bijection import Bijection

# Keys and values of every layer of one block, for the tokens known so far.
BlockCache = tuple[KVCache | None, ...]


class AutoregressiveBlock(Bijection):
    r"""A block of TarFlow.

    .. math:: y_i = (x_i - b_i)\, e^{-a_i}, \qquad (a_i, b_i) = g_i(x_0, \dots, x_{i-1}, c)

    Token 0 passes unchanged. The last projection starts at zero, so an untrained block is the
    identity.

    References:
        Normalizing Flows are Capable Generative Models (Zhai et al., 2024).
        https://arxiv.org/abs/2412.06329

    Arguments:
        tokens: Tokens in a sequence, T.
        size: Numbers per token, D.
        layers: Transformer layers.
        width: Numbers per token inside.
        head_size: Numbers per attention head.
        classes: Number of classes, or None when unconditional.
    """

    def __init__(self, tokens: int, size: int, layers: int, width: int, head_size: int, classes: int | None) -> None:
        super().__init__()
        if tokens < 2:
            raise ValueError(
                f"tokens is {tokens}, expected 2 or more, since token 0 passes unchanged; take a smaller patch"
            )
        self.project = nn.Linear(size, width)
        self.position = nn.Parameter(torch.randn(tokens - 1, width) * 0.02)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.layers = nn.ModuleList(Layer(width, head_size, causal=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def encode(self, x: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps tokens, with shape (B, T, D), to tokens, all at once; see `Bijection.encode`."""
        h = self._enter(x[:, :-1], self.position, self._condition(len(x), label, dropped))
        for layer in self.layers:
            h = layer(h)
        a, b = self._leave(h, x)
        y = torch.cat([x[:, :1], (x[:, 1:] - b) * torch.exp(-a)], 1)
        return y, -a.sum((1, 2))

    def decode(
        self,
        z: Tensor,
        label: Tensor | None = None,
        dropped: Tensor | None = None,
        *,
        guidance: float = 0.0,
    ) -> Tensor:
        """Maps tokens to tokens, one after the other.

        Arguments:
            z: Noise tokens, with shape (B, T, D).
            label: Class labels, with shape (B,).
            dropped: True where the label is dropped, with shape (B,).
            guidance: w of a = a_c + w (a_c - a_u), and the same for b, where c is with and u
                without label; 0 is none. Without labels there is nothing to guide.
        """
        condition = self._condition(len(z), label, dropped)
        guided = guidance != 0 and label is not None and self.label is not None
        if guided:
            none = self._condition(len(z), None, None)
            assert condition is not None
            assert none is not None
            condition = torch.cat([condition, none])  # the second half goes without labels
        cache: BlockCache = (None,) * len(self.layers)
        known = [z[:, :1]]
        for i in range(1, z.shape[1]):
            last = torch.cat([known[-1]] * 2) if guided else known[-1]
            a, b, cache = self.decode_step(last, i, condition, cache)
            if guided:
                a, b = _guide(a, guidance), _guide(b, guidance)
            known.append(z[:, i : i + 1] * torch.exp(a) + b)
        return torch.cat(known, 1)

    def decode_step(
        self, last: Tensor, i: int, condition: Tensor | None, cache: BlockCache
    ) -> tuple[Tensor, Tensor, BlockCache]:
        """Gives token i's log-scale and shift, from the token before it and a cache.

        Arguments:
            last: Token i - 1 of the data, with shape (B, 1, D).
            i: Position of the token that is asked for, from 1.
            condition: Label vectors, with shape (B, 1, width), or None.
            cache: Keys and values of tokens 0..i - 2; it is not changed.

        Returns:
            a_i and b_i, each with shape (B, 1, D), and a cache that holds token i - 1 too.
        """
        h = self._enter(last, self.position[i - 1], condition)
        grown = []
        for layer, seen in zip(self.layers, cache, strict=True):
            assert isinstance(layer, Layer)
            h, seen = layer.step(h, seen)
            grown.append(seen)
        return *self._leave(h, last), tuple(grown)

    def _condition(self, count: int, label: Tensor | None, dropped: Tensor | None) -> Tensor | None:
        return None if self.label is None else self.label(count, label, dropped)[:, None]

    def _enter(self, x: Tensor, position: Tensor, condition: Tensor | None) -> Tensor:
        h = self.project(x)
        return h + position if condition is None else h + (position + condition)

    def _leave(self, h: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        # In the data's dtype, also under autocast: exp and the sum of log-scales need the digits.
        a, b = self.head(self.norm(h)).to(like.dtype).chunk(2, -1)
        return a, b


def _guide(parameter: Tensor, guidance: float) -> Tensor:
    conditional, unconditional = parameter.chunk(2)
    return conditional + guidance * (conditional - unconditional)
