"""PNG files that say what they show and what has made it."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

KEY = "nfm"  # of the text chunk


def png(pixels: Tensor | np.ndarray, said: Mapping[str, Any]) -> bytes:
    """Returns a PNG with a text chunk, JSON under the key "nfm".

    Arguments:
        pixels: uint8 with shape (C, H, W), C = 1 for grey or 3 for colour; or an array (H, W, 4) with opacity.
        said: What the chunk says.
    """
    if isinstance(pixels, Tensor):
        pixels = pixels[0].numpy() if len(pixels) == 1 else pixels.movedim(0, 2).numpy()
    chunk, file = PngInfo(), io.BytesIO()
    chunk.add_text(KEY, json.dumps(dict(said), sort_keys=True))
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", pnginfo=chunk)
    return file.getvalue()
