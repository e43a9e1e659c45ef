"""From images to features, by our classifier or by another network."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nfm.metrics.features import Classifier


class Extractor(nn.Module, ABC):
    """A network that gives features of images."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Returns the features, with shape (B, F), of uint8 images with shape (B, C, H, W)."""


class ClassifierExtractor(Extractor):
    """Our classifier's penultimate layer.

    Arguments:
        classifier: The trained classifier.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor, batch: int = 100) -> Tensor:
    """Computes the features of images.

    Arguments:
        extractor: The network.
        images: Pixels as uint8, with shape (N, C, H, W); samples are brought to pixels first, as
            the real images are.
        batch: Images at once.

    Returns:
        Features with shape (N, F), on the CPU.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected uint8; use nfm.data's to_uint8")
    device = next(extractor.parameters()).device
    return torch.cat([extractor(pixels.to(device)).cpu() for pixels in images.split(batch)])
