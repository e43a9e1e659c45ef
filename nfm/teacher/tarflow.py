"""TarFlow: autoregressive blocks on the patches of an image."""

from torch import Tensor, nn

from nfm.nn.patches import patchify, token_shape, unpatchify
from nfm.teacher.autoregressive import AutoregressiveBlock
from nfm.teacher.bijection import Bijection


class TarFlow(Bijection):
    """A normalizing flow on images: autoregressive blocks, every other one on reversed tokens.

    Few long tokens and many blocks of one layer make the best use of a small budget. Untrained,
    the flow is the identity.

    References:
        Normalizing Flows are Capable Generative Models (Zhai et al., 2024).
        https://arxiv.org/abs/2412.06329

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
        self.shape, self.patch, self.classes = shape, patch, classes
        tokens, size = token_shape(shape, patch)
        self.blocks = nn.ModuleList(
            AutoregressiveBlock(tokens, size, layers, width, head_size, classes) for _ in range(blocks)
        )

    def encode(self, x: Tensor, label: Tensor | None = None, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps images, with shape (B, C, H, W), to noise of that shape; see `Bijection.encode`."""
        y, log_det = patchify(x, self.patch), x.new_zeros(len(x))
        for k, block in enumerate(self.blocks):
            y, change = block(_ordered(k, y), label, dropped)
            y, log_det = _ordered(k, y), log_det + change
        return unpatchify(y, self.shape, self.patch), log_det

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
        """Maps noise to images, without a gradient.

        One token after the other, an image costs T passes a block; a chunk of tokens at once, as many as its sweeps.

        Arguments:
            z: Noise, with shape (B, C, H, W).
            label: Class labels, with shape (B,).
            dropped: True where the label is dropped, with shape (B,).
            guidance: w of a = a_c + w (a_c - a_u), and the same for b, in every block; 0 is none.
            chunk: Tokens solved for at once; see `AutoregressiveBlock.decode`.
            tolerance: Of a chunk's sweeps.

        Returns:
            Images, with shape (B, C, H, W).
        """
        y = patchify(z, self.patch)
        for k, block in reversed(list(enumerate(self.blocks))):
            assert isinstance(block, AutoregressiveBlock)
            y = block.decode(_ordered(k, y), label, dropped, guidance=guidance, chunk=chunk, tolerance=tolerance)
            y = _ordered(k, y)
        return unpatchify(y, self.shape, self.patch)


def _ordered(k: int, tokens: Tensor) -> Tensor:
    """Turns tokens to the order in which block k sees them, and back."""
    return tokens.flip(1) if k % 2 else tokens
