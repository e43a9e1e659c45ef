"""The section `data`, by kind of data set."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from nfm.config.section import Filter, Fraction, Limit, Section, Validation, Version


class DigitsData(Section):
    """The 8x8 handwritten digits that scikit-learn ships."""

    kind: Literal["digits"]
    test_fraction: Fraction
    validation: Validation
    seed: NonNegativeInt


class MnistData(Section):
    """The four MNIST files in a folder: 28x28, padded to 32x32, or that averaged down to 16x16."""

    kind: Literal["mnist"]
    folder: str
    image_size: Literal[16, 28, 32]
    download: bool
    validation: Validation
    seed: NonNegativeInt


class Cifar10Data(Section):
    """CIFAR-10, 32x32 in colour, from its python archive."""

    kind: Literal["cifar10"]
    archive: str  # path or s3://bucket/key of cifar-10-python.tar.gz
    flips: bool  # whether each training image is also there mirrored
    validation: Validation
    seed: NonNegativeInt


class ImagenetData(Section):
    """ImageNet, in colour; a folder has class sub-folders or tar shards, or is an s3:// prefix of either."""

    kind: Literal["imagenet"]
    train: str
    test: str
    image_size: PositiveInt  # pixels
    filter: Filter
    version: Version
    limit: Limit
    flips: bool
    validation: Validation
    seed: NonNegativeInt


class FolderData(Section):
    """Images of one's own: a folder with one sub-folder per class or with tar shards, or an s3:// prefix of either."""

    kind: Literal["folder"]
    folder: str
    image_size: PositiveInt
    channels: Literal[1, 3]
    filter: Filter
    test_fraction: Fraction
    version: Version
    limit: Limit
    flips: bool
    validation: Validation
    seed: NonNegativeInt


class LatentsData(Section):
    """Images of another section, each encoded once by a frozen autoencoder; the flows learn its latents."""

    kind: Literal["latents"]
    images: Annotated[Cifar10Data | ImagenetData | FolderData, Field(discriminator="kind")]
    autoencoder: str  # folder of diffusers' AutoencoderKL
    channels: PositiveInt  # of a latent
    factor: PositiveInt  # pixels along the side of what a place of a latent stands for
    scale: PositiveFloat  # latents are scale * (mean - shift)
    shift: float
    keep: PositiveInt  # images of each split whose pixels are kept, for the features and the reference


DataSection = Annotated[
    DigitsData | MnistData | Cifar10Data | ImagenetData | FolderData | LatentsData,
    Field(discriminator="kind"),
]
