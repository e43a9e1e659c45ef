"""Images to tokens and back."""

from torch import Tensor


def token_shape(shape: tuple[int, int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Returns how many tokens an image has and how many numbers a token, (T, D).

    Arguments:
        shape: Image shape (C, H, W).
        patch: Height and width of a token in pixels; (1, W) makes rows of pixels.

    Raises:
        ValueError: The patch does not divide the image.
    """
    (c, h, w), (p, q) = shape, patch
    if h % p or w % q:
        raise ValueError(f"patch is {tuple(patch)}, expected divisors of the image's {h}x{w}")
    return (h // p) * (w // q), p * q * c


def patchify(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cuts images into tokens, row by row.

    Arguments:
        x: Images, with shape (B, C, H, W).
        patch: Height and width of a token in pixels; they divide H and W.

    Returns:
        Tokens, with shape (B, T, p_h * p_w * C); inside a token the channel varies fastest.
    """
    b, c, h, w = x.shape
    tokens, size = token_shape((c, h, w), patch)
    p, q = patch
    x = x.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, tokens, size)


def unpatchify(tokens: Tensor, shape: tuple[int, int, int], patch: tuple[int, int]) -> Tensor:
    """Puts tokens together to images of shape (C, H, W): the inverse of `patchify`."""
    (c, h, w), (p, q) = shape, patch
    x = tokens.reshape(-1, h // p, w // q, p, q, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(-1, c, h, w)
