"""One causal transformer as a bijection on sequences of tokens."""

import torch
from torch import Tensor, nn

from nfm.nn.attention import Attention, KVCache
from nfm.nn.embed import LabelEmbedding
from nfm.nn.transformer import Layer
from nfm.teacher.bijection import Bijection

# Keys and values of every layer of one block, for the tokens known so far.
BlockCache = tuple[KVCache, ...]


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

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        label: Tensor | None = None,
        dropped: Tensor | None = None,
        *,
        guidance: float = 0.0,
        chunk: int = 1,
        tolerance: float = 0.0,
    ) -> Tensor:
        r"""Maps tokens to tokens, without a gradient.

        A chunk of tokens is the fixed point of

        .. math:: x_i \leftarrow z_i\, e^{a_i(x_{<i})} + b_i(x_{<i}),

        swept over all its tokens at once (Jacobi) once the chunks before it are known (Gauss-Seidel). As token i needs
        only those before it, the n-th sweep of n tokens is exact, and a chunk of one token needs one.

        References:
            Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving (Song et al., 2021).
            https://arxiv.org/abs/2002.03629

        Arguments:
            z: Noise tokens, with shape (B, T, D).
            label: Class labels, with shape (B,).
            dropped: True where the label is dropped, with shape (B,).
            guidance: w of a = a_c + w (a_c - a_u), and the same for b, where c is with and u
                without label; 0 is none. Without labels there is nothing to guide.
            chunk: Tokens to a chunk.
            tolerance: The sweeps of a chunk end where none of its numbers changes by more.
        """
        condition = self._condition(len(z), label, dropped)
        if label is None or self.label is None:
            guidance = 0.0
        if guidance:
            none = self._condition(len(z), None, None)
            assert condition is not None
            assert none is not None
            condition = torch.cat([condition, none])  # the second half goes without labels
        cache = self.room(2 * len(z) if guidance else len(z), z)
        x = z.clone()
        for first in range(1, z.shape[1], chunk):
            part = slice(first, min(first + chunk, z.shape[1]))
            for sweeps_left in reversed(range(part.stop - first)):
                a, b, grown = self._guided_step(x[:, first - 1 : part.stop - 1], first, condition, cache, guidance)
                before, x[:, part] = x[:, part].clone(), z[:, part] * torch.exp(a) + b
                if sweeps_left and (x[:, part] - before).abs().max() <= tolerance:
                    break
            cache = grown
        return x

    def _guided_step(
        self, known: Tensor, first: int, condition: Tensor | None, cache: BlockCache, guidance: float
    ) -> tuple[Tensor, Tensor, BlockCache]:
        if not guidance:
            return self.decode_step(known, first, condition, cache)
        a, b, grown = self.decode_step(torch.cat([known, known]), first, condition, cache)
        return _guide(a, guidance), _guide(b, guidance), grown

    def room(self, count: int, like: Tensor) -> BlockCache:
        """Returns empty caches for `count` sequences, with the dtype and device of `like`."""
        attentions = (layer.get_submodule("attention") for layer in self.layers)
        return tuple(a.room(count, len(self.position), like) for a in attentions if isinstance(a, Attention))

    def decode_step(
        self, known: Tensor, first: int, condition: Tensor | None, cache: BlockCache
    ) -> tuple[Tensor, Tensor, BlockCache]:
        """Gives log-scale and shift of n tokens, from those before each of them and a cache.

        Arguments:
            known: Tokens first - 1 to first + n - 2 of the data, with shape (B, n, D).
            first: Position of the first token that is asked for, from 1.
            condition: Label vectors, with shape (B, 1, width), or None.
            cache: Keys and values of tokens 0..first - 2; see `Attention.extend`.

        Returns:
            a and b of tokens first to first + n - 1, each with shape (B, n, D), and a cache that
            holds the tokens given too.
        """
        h = self._enter(known, self.position[first - 1 : first - 1 + known.shape[1]], condition)
        grown = []
        for layer, seen in zip(self.layers, cache, strict=True):
            assert isinstance(layer, Layer)
            h, seen = layer.extend(h, seen)
            grown.append(seen)
        return *self._leave(h, known), tuple(grown)

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
