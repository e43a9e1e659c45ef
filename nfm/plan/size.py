"""How large a data set is, from its section, without reading an image."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nfm.build.data import ImageSection, make_source
from nfm.config import Cifar10Data, DataSection, DigitsData, FolderData, ImagenetData, LatentsData, MnistData
from nfm.errors import InputError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Size:
    """A data set's size.

    Attributes:
        shape: Of what the models learn, an image or a latent, (C, H, W).
        classes: Their number, 0 for none.
        train: Images to train on, their mirror images among them.
        test: Images to measure on.
        kept: Of latents, how many images of each split keep their pixels, at most; 0 for images.
        pixels: Of latents, the shape of an image.
        autoencoder: Of latents, the configuration of the AutoencoderKL between the two.
    """

    shape: Shape
    classes: int
    train: int
    test: int
    kept: int = 0
    pixels: Shape | None = None
    autoencoder: dict[str, Any] | None = None

    @property
    def dimensions(self) -> int:
        """Numbers per image or latent."""
        return math.prod(self.shape)

    @property
    def image(self) -> Shape:
        """Shape of what samples are measured as."""
        return self.pixels or self.shape

    def visible(self, images: int) -> int:
        """Returns how many images of a split there are as pixels."""
        return min(images, self.kept) if self.kept else images


def data_size(section: DataSection, root: Path, images: int | None, classes: int | None) -> Size:
    """Returns the size of the data set that a section names: as published, or of a folder that is listed.

    Arguments:
        section: The `data` section.
        root: What its folders are relative to.
        images: Number of images before validation and mirror images, in place of those published or listed: to train
            on, or all of a folder; None for these.
        classes: Number of classes, likewise.

    Raises:
        InputError: It is a folder that is not there, and no number of images is given.
    """
    if isinstance(section, LatentsData):
        return _encoded(data_size(section.images, root, images, classes), section, root)
    if isinstance(section, FolderData) and images is None:
        return _listed(section, root, classes)
    shape, train, test, known = _published(section, images)
    if section.validation is not None:
        test = math.ceil(section.validation * train)
        train -= test
    if isinstance(section, FolderData | ImagenetData) and section.limit is not None:
        train, test = min(train, section.limit), min(test, section.limit)
    if isinstance(section, Cifar10Data | FolderData | ImagenetData) and section.flips:
        train *= 2
    return Size(shape, known if classes is None else classes, train, test)


def _encoded(size: Size, section: LatentsData, root: Path) -> Size:
    height, width = (side // section.factor for side in size.shape[1:])
    config = _configuration(section, root, size.shape[0])
    shape = (section.channels, height, width)
    return replace(size, shape=shape, kept=section.keep, pixels=size.shape, autoencoder=config)


def _configuration(section: LatentsData, root: Path, colours: int) -> dict[str, Any]:
    """Returns what the autoencoder's folder says; where there is none, Stable Diffusion's widths for the factor.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022).
        https://arxiv.org/abs/2112.10752
    """
    try:
        return json.loads((root / section.autoencoder / "config.json").read_text())
    except FileNotFoundError:
        levels = section.factor.bit_length()
        return {
            "in_channels": colours,
            "out_channels": colours,
            "latent_channels": section.channels,
            "block_out_channels": [128 * min(2**level, 4) for level in range(levels)],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": 2,
        }
    except ValueError as error:
        raise InputError(
            f"{root / section.autoencoder / 'config.json'} is no JSON ({error}); fetch the autoencoder again"
        ) from error


def _published(section: ImageSection, images: int | None) -> tuple[Shape, int, int, int]:
    """Returns shape, training images, test images and classes."""
    match section:
        case DigitsData():
            return (1, 8, 8), *_divided(images or 1797, section.test_fraction), 10
        case MnistData():
            return (1, section.image_size, section.image_size), images or 60_000, 10_000, 10
        case Cifar10Data():
            return (3, 32, 32), images or 50_000, 10_000, 10
        case ImagenetData():
            return (3, section.image_size, section.image_size), images or 1_281_167, 50_000, 1000
        case FolderData():
            shape = (section.channels, section.image_size, section.image_size)
            return shape, *_divided(images or 0, section.test_fraction), 0


def _divided(images: int, share: float) -> tuple[int, int]:
    test = math.ceil(share * images)
    return images - test, test


def _listed(section: FolderData, root: Path, classes: int | None) -> Size:
    """Lists a folder as the stage prepare does."""
    if not (root / section.folder).is_dir():
        raise InputError(
            f"data.folder is {section.folder}, which is no folder here to be counted; "
            "say how many images it holds with --images, and how many classes with --classes"
        )
    source = make_source(section, root)
    known = len(source.classes) if classes is None else classes
    return Size(source.shape, known, len(source.train), len(source.test))
