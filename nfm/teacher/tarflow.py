"""TarFlow: a stack of causal transformers as an autoregressive normalizing flow."""

import math

import torch
from torch import Tensor, nn

from nfm.nn.attention import KVCache
from nfm.nn.embed import LabelEmbedding
from nfm.nn.patches import patchify, unpatchify
from nfm.nn.transformer import Layer
from nfm.teacher.bijection import Bijection

# Keys and values of every layer of one block, for the tokens decoded so far.
BlockCache = tuple[KVCache | None, ...]


class AutoregressiveBlock(Bijection):
    r"""One causal transformer as a bijection on sequences of tokens.

    .. math:: y_i = (x_i - b_i)\, e^{-a_i}, \qquad (a_i, b_i) = g(x_0, \dots, x_{i-1}, c)

    Token 0 passes unchanged. The last projection starts at zero, so an untrained block is the identity.

    Arguments:
        tokens: Tokens in a sequence, T.
        size: Numbers per token, D.
        layers: Transformer layers.
        width: Numbers per token inside.
        head_size: Numbers per attention head.
        classes: Number of classes, or None when unconditional.
        reverse: Whether tokens are taken from last to first.
    """

    def __init__(
        self,
        tokens: int,
        size: int,
        layers: int,
        width: int,
        head_size: int,
        classes: int | None,
        reverse: bool,
    ) -> None:
        super().__init__()
        self.reverse = reverse
        self.project = nn.Linear(size, width)
        self.position = nn.Parameter(torch.randn(tokens - 1, width) * 0.02)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.layers = nn.ModuleList(Layer(width, head_size, causal=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def encode(self, x, label=None, dropped=None):
        """Maps tokens, with shape (B, T, D), to tokens, all at once."""
        x = self._order(x)
        h = self.project(x[:, :-1]) + self.position
        condition = self._condition(len(x), label, dropped)
        h = h if condition is None else h + condition
        for layer in self.layers:
            h = layer(h)
        a, b = self._scale_and_shift(h)
        y = torch.cat([x[:, :1], (x[:, 1:] - b) * torch.exp(-a)], 1)
        return self._order(y), -a.sum((1, 2))

    def decode(self, z, label=None, dropped=None, *, guidance=0.0):
        """Maps tokens, with shape (B, T, D), to tokens, one after the other.

        Arguments:
            z: Noise tokens, with shape (B, T, D).
            label: Class labels, with shape (B,).
            dropped: True where the label is dropped, with shape (B,).
            guidance: w of a = a_c + w (a_c - a_u), and the same for b; 0 is none.
        """
        z = self._order(z)
        guided = guidance != 0 and self.label is not None and label is not None
        condition = self._condition(len(z), label, dropped)
        if guided:  # the second half of the batch is without labels
            condition = torch.cat([condition, self._condition(len(z), None, None)])
        x = z[:, :1]
        known = [x]
        cache: BlockCache = (None,) * len(self.layers)
        for i in range(1, z.shape[1]):
            token = torch.cat([x, x]) if guided else x
            (a, b), cache = self.decode_step(token, i, condition, cache)
            if guided:
                a, b = (_guide(p, guidance) for p in (a, b))
            x = z[:, i : i + 1] * torch.exp(a) + b
            known.append(x)
        return self._order(torch.cat(known, 1))

    def decode_step(
        self, token: Tensor, i: int, condition: Tensor | None, cache: BlockCache
    ) -> tuple[tuple[Tensor, Tensor], BlockCache]:
        """Gives token i's scale and shift from the token before it.

        Arguments:
            token: Token i - 1 of the data, with shape (B, 1, D), in the block's order.
            i: Position of the token that is asked for, from 1.
            condition: Label vectors, with shape (B, 1, width), or None.
            cache: Keys and values of the tokens before; it is not changed.

        Returns:
            (a_i, b_i), each with shape (B, 1, D), and the cache that holds token i - 1 too.
        """
        h = self.project(token) + self.position[i - 1]
        h = h if condition is None else h + condition
        grown = []
        for layer, seen in zip(self.layers, cache, strict=True):
            h, seen = layer.step(h, seen)
            grown.append(seen)
        return self._scale_and_shift(h), tuple(grown)

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x

    def _condition(
        self, count: int, label: Tensor | None, dropped: Tensor | None
    ) -> Tensor | None:
        return None if self.label is None else self.label(count, label, dropped)[:, None]

    def _scale_and_shift(self, h: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.head(self.norm(h)).chunk(2, -1)
        return a, b


class TarFlow(Bijection):
    """A normalizing flow on images: autoregressive blocks on patches, in alternating order.

    References:
        Normalizing Flows are Capable Generative Models (Zhai et al., 2024). https://arxiv.org/abs/2412.06329

    Arguments:
        shape: Image shape (C, H, W).
        patch: Height and width of a token in pixels; (1, W) makes rows of pixels.
        blocks: Autoregressive blocks.
        layers: Transformer layers per block.
        width: Numbers per token inside a block.
        head_size: Numbers per attention head.
        classes: Number of classes, or None when unconditional.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: tuple[int, int],
        blocks: int,
        layers: int,
        width: int,
        head_size: int,
        classes: int | None,
    ) -> None:
        super().__init__()
        c, h, w = shape
        if h % patch[0] or w % patch[1]:
            raise ValueError(f"patch is {patch}, expected divisors of the image's {h}x{w} pixels")
        self.shape, self.patch, self.classes = shape, patch, classes
        tokens, size = (h // patch[0]) * (w // patch[1]), patch[0] * patch[1] * c
        if tokens < 2:
            raise ValueError(f"patch is {patch}, which leaves one token of {h}x{w} pixels, want 2")
        self.blocks = nn.ModuleList(
            AutoregressiveBlock(tokens, size, layers, width, head_size, classes, k % 2 == 1)
            for k in range(blocks)
        )

    def encode(self, x, label=None, dropped=None):
        """Maps images, with shape (B, C, H, W), to noise of that shape."""
        y, log_det = patchify(x, self.patch), x.new_zeros(len(x))
        for block in self.blocks:
            y, change = block(y, label, dropped)
            log_det = log_det + change
        return unpatchify(y, self.shape, self.patch), log_det

    def decode(self, z, label=None, dropped=None, *, guidance=0.0):
        """Maps noise, with shape (B, C, H, W), to images of that shape; guidance as in a block."""
        y = patchify(z, self.patch)
        for block in reversed(self.blocks):
            y = block.decode(y, label, dropped, guidance=guidance)
        return unpatchify(y, self.shape, self.patch)

    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the log-density of images in nats, with shape (B,); the base is N(0, I)."""
        z, log_det = self.encode(x, label)
        return log_det - 0.5 * (z**2 + math.log(2 * math.pi)).sum((1, 2, 3))


def _guide(parameter: Tensor, guidance: float) -> Tensor:
    conditional, unconditional = parameter.chunk(2)
    return conditional + guidance * (conditional - unconditional)
