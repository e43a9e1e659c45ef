"""Samples as HTML: cells of a few images by coupling and NFE, strips at every NFE."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

import numpy as np
from torch import Tensor

from nfm.figures import label, several_steps, spread_over, tile
from nfm.report.tables import key, shades

Samples = Mapping[str, Mapping[int, Tensor]]  # coupling -> NFE -> uint8 (K, C, H, W)

SHOWN = (1, 2, 3, 5, 7, 31)  # NFEs of the first picture, which has the width of a phone


def samples_by_nfe(settings: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Orders samples by NFE; Euler's where Heun's have the same NFE.

    Arguments:
        settings: Samples by solver and NFE, such as "euler-5".
    """
    found: dict[int, Tensor] = {}
    for solver in ("heun", "euler"):
        for name, images in settings.items():
            if name.startswith(f"{solver}-"):
                found[int(name.rpartition("-")[2])] = images
    return dict(sorted(found.items()))


def picture(samples: Samples) -> str:
    """Returns the first picture: up to six samples a cell, rows couplings, columns NFE."""
    samples = several_steps(samples)
    nfes = _shared(samples)
    shown = [n for n in SHOWN if n in nfes] or nfes[:6]
    heads = "".join(f"<span>NFE {n}</span>" for n in shown)
    rows = f'<div class="row head"><span class="name"></span>{heads}</div>'
    for name, shade in shades(list(samples)).items():
        cells = "".join(_image(tile(spread_over(samples[name][n], 6), 3), f"{label(name)}, NFE {n}") for n in shown)
        rows += f'<div class="row"><span class="name">{key(shade)}{escape(label(name))}</span>{cells}</div>'
    return f'<div class="picture" style="--columns:{len(shown)}">{rows}</div>'


def strips(samples: Samples) -> str:
    """Returns all samples that were kept: a block a coupling, a row an NFE."""
    blocks = ""
    for name, shade in shades(list(samples)).items():
        rows = "".join(
            f"<span>{nfe}</span>{_image(tile(images, len(images), size=24), f'{label(name)}, NFE {nfe}')}"
            for nfe, images in samples[name].items()
        )
        blocks += f'<div class="strips"><h3>{key(shade)}{escape(label(name))}</h3>{rows}</div>'
    return f'<div class="blocks">{blocks}</div>'


def data_uri(content: bytes, kind: str) -> str:
    """Returns an image's bytes as a URI, so that the page needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _shared(samples: Samples) -> Sequence[int]:
    return sorted(set.intersection(*(set(images) for images in samples.values())))


def _image(pixels: np.ndarray, alt: str) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    height, width = pixels.shape[:2]
    uri = data_uri(buffer.getvalue(), "png")
    return f'<img src="{uri}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}">'
