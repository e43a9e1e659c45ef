"""The data set that the `data` section names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nfm.config import Cifar10Data, DataSection, DigitsData, FolderData, ImagenetData, LatentsData, MnistData, Params
from nfm.data.autoencoder import load_pretrained, stamp
from nfm.data.examples import Latents, Source, with_limit, with_mirror_images, with_validation
from nfm.data.s3 import fetch
from nfm.data.shards import Split
from nfm.data.source import cifar10, digits, folder, imagenet, mnist
from nfm.data.stream import Cache
from nfm.errors import InputError

Say = Callable[[str], None]
ImageSection = DigitsData | MnistData | Cifar10Data | FolderData | ImagenetData


def make_source(section: DataSection, root: Path, say: Say = lambda line: None) -> Source:
    """Finds the data set; paths are relative to the project's root, objects of a store are fetched.

    Validation images are split off before mirroring, so that no mirror image of one is trained on.
    """
    key = "data.images" if isinstance(section, LatentsData) else "data"
    section = image_section(section)
    source = _find(section, root, say, key)
    if section.validation is not None:
        source = with_validation(source, section.validation, section.seed, key)
    if isinstance(section, FolderData | ImagenetData) and section.limit is not None:
        source = with_limit(source, section.limit, section.seed)
    if isinstance(section, Cifar10Data | FolderData | ImagenetData) and section.flips:
        source = with_mirror_images(source)
    return source


def open_training_images(root: Path, params: Params, *, verify: bool = True) -> Split:
    """Opens artifacts/data/train; shards that lie in a store come as they are read.

    Arguments:
        root: The project's folder.
        params: Bound the cache of such shards.
        verify: As of `Split.open`.

    Raises:
        InputError: The stage prepare has not run, or a file is damaged.
    """
    cache = Cache(root / ".cache" / "shards", int(params.run.cache_gb * 1e9))
    return Split.open(root / "artifacts" / "data" / "train", verify, cache)


def with_latents(source: Source, section: LatentsData, root: Path, device: torch.device) -> Source:
    """Puts the latents of a data set in the place of its images.

    Mirror images are encoded by themselves: the mirror image of a latent is not the latent of the mirror image.

    Raises:
        InputError: The autoencoder cannot be used, is not the one that the section describes, or the images do not fit.
    """
    folder = root / section.autoencoder
    autoencoder = load_pretrained(folder, "data.autoencoder", section.scale, section.shift, device)
    for name in ("channels", "factor"):
        if (found := getattr(autoencoder, name)) != getattr(section, name):
            raise InputError(
                f"data.{name} is {getattr(section, name)}, but the autoencoder in {folder} has {found}; "
                f"set data.{name} to {found} or name another autoencoder"
            )
    colours, height, width = source.shape
    if colours != autoencoder.colours:
        raise InputError(
            f"data.images has {colours} channels, the autoencoder in {folder} takes {autoencoder.colours}; "
            "choose images or an autoencoder that fit"
        )
    if height % section.factor or width % section.factor:
        raise InputError(
            f"data.images has {height}x{width} pixels, which data.factor = {section.factor} does not divide; "
            "choose a size that it divides"
        )
    shape = (section.channels, height // section.factor, width // section.factor)
    mark = f"{stamp(folder)} {section.scale} {section.shift}"
    return replace(
        source,
        notes=f"{source.notes}; latents are {section.scale:g} (mean - {section.shift:g}) of an autoencoder",
        latents=Latents(shape, autoencoder.encode, autoencoder.save, mark, section.keep),
    )


def image_section(section: DataSection) -> ImageSection:
    """Returns the section of the images themselves."""
    return section.images if isinstance(section, LatentsData) else section


def _find(section: ImageSection, root: Path, say: Say, key: str) -> Source:
    def place(path: str, name: str) -> Path:
        if not path.startswith("s3://"):
            return root / path
        return fetch(path, root / ".cache" / "s3", f"{key}.{name}", say)

    match section:
        case DigitsData():
            return digits(test_fraction=section.test_fraction, seed=section.seed)
        case MnistData():
            return mnist(root / section.folder, size=section.image_size, download=section.download)
        case Cifar10Data():
            return cifar10(place(section.archive, "archive"))
        case FolderData():
            return folder(
                place(section.folder, "folder"),
                name=(root / section.folder).resolve().name,
                size=section.image_size,
                channels=section.channels,
                filter=section.filter,
                test_fraction=section.test_fraction,
                seed=section.seed,
                key=key,
            )
        case ImagenetData():
            return imagenet(
                place(section.train, "train"),
                place(section.test, "test"),
                size=section.image_size,
                filter=section.filter,
                key=key,
            )
