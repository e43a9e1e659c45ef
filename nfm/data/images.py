"""A folder with one sub-folder of images per class."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
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


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each class, classes and files sorted by name.

    A class is a sub-folder; hidden entries and files without an image's ending are passed over.

    Raises:
        InputError: There is no class, a class without two images (one to train on, one to test
            on), or an image outside the classes.
    """
    if not folder.is_dir():
        raise InputError(f"data.folder is {folder}, which is no folder; name one that exists")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if _is_image(entry):
            raise InputError(f"{entry} lies outside the classes; move it into its class's folder")
    classes = {entry.name: _images_in(entry) for entry in entries if entry.is_dir()}
    if not classes:
        raise InputError(
            f"{folder} holds no class; expected one sub-folder of images per class, or a single one with all images"
        )
    return classes


def read_image(path: Path, size: int, channels: int, filter: str) -> Tensor:
    """Reads an image as its central square, resized.

    The camera's rotation tag is followed; transparent parts are laid on white. PIL's filters
    widen with the reduction, so that downsizing does not alias.

    Arguments:
        path: An image file.
        size: Height and width wanted, pixels.
        channels: 1 for grey (luma, ITU-R 601-2), 3 for colour.
        filter: Name of PIL's resampling filter, one of `FILTERS`.

    Returns:
        The image as uint8, with shape (channels, size, size).

    Raises:
        InputError: PIL cannot read the file, or it has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); replace it or take it out") from error
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path} has PIL's mode {image.mode}, expected 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Converted first: a palette cannot be averaged.
    square = (size, size)
    image = ImageOps.fit(image.convert(MODES[channels]), square, FILTERS[filter])
    return torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1)


def _images_in(folder: Path) -> list[Path]:
    files = sorted(entry for entry in folder.iterdir() if _is_image(entry))
    if len(files) < 2:
        raise InputError(
            f"class {folder.name!r} in {folder.parent} holds {len(files)} images, expected at "
            f"least 2 with one of the endings {' '.join(sorted(ENDINGS))}"
        )
    return files


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in ENDINGS and path.is_file()
