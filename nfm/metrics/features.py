"""The small classifier whose penultimate layer the Fréchet distance is measured on."""

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 64  # numbers per image
TURNS = 4  # by quarters: the classes of images that have none


class Classifier(nn.Module):
    r"""A convolutional classifier with 64 penultimate features.

    3x3 convolutions; the map is halved and the channels doubled until neither side is above 4
    pixels, so any image from 8x8 to 64x64 will do. It has no batch statistics and no dropout:
    averaged weights need no second pass, and an image's features do not depend on its batch.

    Images are float on [-1, 1], or uint8 pixels u, which are read as u / 127.5 - 1.

    Arguments:
        shape: Image shape (C, H, W).
        classes: Number of classes, at least 2.
        width: Channels of the first convolution, a multiple of 8.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes is {classes}, expected at least 2 to learn features from")
        if width % 8:
            raise ValueError(f"width is {width}, expected a multiple of 8")
        channels, height, wide = shape
        layers = [*_convolution(channels, width), *_convolution(width, width)]
        while max(height, wide) > 4:
            height, wide = (height + 1) // 2, (wide + 1) // 2
            layers += [*_convolution(width, 2 * width, stride=2)]
            width *= 2
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.embed = nn.Linear(width * height * wide, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Returns the penultimate features, with shape (B, 64), of images (B, C, H, W)."""
        if not x.is_floating_point():
            x = x.to(self.head.weight.dtype) / 127.5 - 1
        return functional.gelu(self.embed(self.trunk(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, with shape (B, classes), of images with shape (B, C, H, W)."""
        return self.head(self.features(x))


def _convolution(inside: int, outside: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inside, outside, 3, stride, 1),
        nn.GroupNorm(outside // 8, outside),
        nn.GELU(),
    ]


def classifier_loss(model: nn.Module, data: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy, in nats, with labels smoothed by 0.1 on images shifted by up to one pixel.

    Both narrow the gap between the features of the images trained on and of those held out, which
    is the floor of the Fréchet distance; the shifts also keep the features from overlooking noise.

    Arguments:
        model: Gives logits; called once.
        data: Images on [-1, 1], with shape (B, C, H, W).
        label: Classes, with shape (B,).
        generator: Draws the shifts; on the device of the data.
    """
    logits = model(shift(data, 1, generator))
    return functional.cross_entropy(logits, label, label_smoothing=0.1)


def rotation_loss(model: nn.Module, data: Tensor, generator: torch.Generator) -> Tensor:
    """The same loss where images have no labels: which of four quarter turns has been made?

    References:
        Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al., 2018).
        https://arxiv.org/abs/1803.07728

    Arguments:
        model: Gives logits of the 4 `TURNS`; called once.
        data: Square images on [-1, 1], with shape (B, C, H, H).
        generator: Draws turns and shifts; on the device of the data.
    """
    turn = torch.randint(TURNS, (len(data),), generator=generator, device=data.device)
    return classifier_loss(model, rotate(data, turn), turn, generator)


def rotate(images: Tensor, turn: Tensor) -> Tensor:
    """Turns each square image, of shape (B, C, H, H), left by a number of quarters in 0..3, with shape (B,)."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(TURNS)])
    return turned[turn, torch.arange(len(images), device=images.device)]


def shift(data: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Moves each image by whole pixels, each way by at most `reach`; what comes in is black, -1.

    Arguments:
        data: Images on [-1, 1], with shape (B, C, H, W).
        reach: Largest move, pixels.
        generator: Draws the moves, uniform on the (2 reach + 1)^2 there are.
    """
    count, _, height, wide = data.shape
    padded = functional.pad(data, [reach] * 4, value=-1.0)
    down, right = torch.randint(2 * reach + 1, (2, count, 1, 1), generator=generator, device=data.device)
    rows = down + torch.arange(height, device=data.device)[:, None]
    columns = right + torch.arange(wide, device=data.device)
    image = torch.arange(count, device=data.device)[:, None, None]
    return padded[image, :, rows, columns].permute(0, 3, 1, 2)


@torch.no_grad()
def count_right(model: nn.Module, images: Tensor, label: Tensor, batch: int = 500) -> int:
    """Returns how many images the classifier puts in their own class.

    Arguments:
        model: Gives logits for images on [-1, 1] or pixels.
        images: With shape (N, C, H, W), on any device.
        label: Classes, with shape (N,).
        batch: Images at once.
    """
    device = next(model.parameters()).device
    right = 0
    for x, c in zip(images.split(batch), label.split(batch), strict=True):
        right += int((model(x.to(device)).argmax(dim=1) == c.to(device)).sum())
    return right
