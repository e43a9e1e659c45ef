"""An image file's content to pixels of a wanted size."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nfm.errors import InputError

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MODES = {1: "L", 3: "RGB"}


def is_image(name: str) -> bool:
    """Whether a file's name has an image's ending and is not hidden."""
    _, dot, ending = name.rpartition(".")
    return not name.startswith(".") and dot + ending.lower() in ENDINGS


def decode_image(content: bytes, name: str, size: int, channels: int, filter: str, cmyk: bool) -> Tensor:
    """Decodes an image to its central square, resized.

    The camera's rotation tag is followed; transparent parts are laid on white. PIL's filters
    widen with the reduction, so that downsizing does not alias; "box" is the mean over the area
    of the square that a target pixel covers, in one step.

    Arguments:
        content: Of an image file.
        name: Of the file, for the message.
        size: Height and width wanted, pixels.
        channels: 1 for grey (luma, ITU-R 601-2), 3 for colour.
        filter: Name of PIL's resampling filter, one of `FILTERS`.
        cmyk: Whether printing colours are accepted; PIL turns them to RGB without their profile.

    Returns:
        The image as uint8, with shape (channels, size, size).

    Raises:
        InputError: PIL cannot read the file, it has more than 8 bits a channel or more than one
            picture, or printing colours that are not accepted.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            _check(opened, name, cmyk)
            image = ImageOps.exif_transpose(opened)
            image.load()
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is no image of a format that PIL reads; replace it or take it out") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as an image ({error}); replace it or take it out") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Converted first: a palette cannot be averaged.
    square = (size, size)
    image = ImageOps.fit(image.convert(MODES[channels]), square, FILTERS[filter])
    return torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1)


def _check(image: Image.Image, name: str, cmyk: bool) -> None:
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        raise InputError(
            f"{name} has PIL's mode {image.mode} from 16 bits or more, expected 8 bits a channel; save it so"
        )
    if image.mode == "CMYK" and not cmyk:
        raise InputError(f"{name} has the printing colours CMYK, expected grey or RGB; convert it with its profile")
    # MPO is a camera's JPEG with a preview in it.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is animated or has pages, expected one picture a file; save the one that is meant")


def _is_deep(image: Image.Image) -> bool:
    """Whether PIL would cut the file's colours of 16 bits to 8, which its mode does not tell."""
    return any(";16" in str(tile[3]) or "65535" in str(tile[3]) for tile in getattr(image, "tile", []))
