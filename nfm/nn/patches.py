"""Images to tokens and back."""

from torch import Tensor


def patchify(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cuts images into tokens, row by row.

    Arguments:
        x: Images, with shape (B, C, H, W).
        patch: Height and width of a token in pixels; they divide H and W.

    Returns:
        Tokens, with shape (B, T, p_h * p_w * C).
    """
    b, c, h, w = x.shape
    p, q = patch
    x = x.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, (h // p) * (w // q), p * q * c)


def unpatchify(tokens: Tensor, shape: tuple[int, int, int], patch: tuple[int, int]) -> Tensor:
    """Puts tokens together to images of shape (C, H, W): the inverse of `patchify`."""
    b = tokens.shape[0]
    c, h, w = shape
    p, q = patch
    x = tokens.reshape(b, h // p, w // q, p, q, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, h, w)
