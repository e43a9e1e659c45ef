"""Samples side by side."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nfm.figures.style import Figure, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tile(images: Tensor, columns: int, *, size: int = 32, gap: int = 2) -> np.ndarray:
    """Lays images side by side, each pixel enlarged to a whole number of pixels, on a clear ground.

    Arguments:
        images: Pixels as uint8, with shape (K, C, H, W), C = 1 or 3.
        columns: Images in a row.
        size: Height in pixels that an image is enlarged to at least.
        gap: Pixels between images.

    Returns:
        Red, green, blue and opacity as uint8, with shape (height, width, 4).
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}, expected uint8 (K, C, H, W)")
    zoom = ceil(size / images.shape[2])
    pixels = images.expand(-1, 3, -1, -1).movedim(1, 3).numpy().repeat(zoom, 1).repeat(zoom, 2)
    (height, width), rows = pixels.shape[1:3], ceil(len(pixels) / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for i, image in enumerate(pixels):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width, :3] = image
        sheet[y : y + height, x : x + width, 3] = 255
    return sheet


def several_steps(samples: Mapping[str, Mapping[int, Any]]) -> dict[str, Mapping[int, Any]]:
    """Returns the couplings whose students take several steps; all if none does."""
    return {name: by_nfe for name, by_nfe in samples.items() if len(by_nfe) > 1} or dict(samples)


def spread_over(images: Tensor, count: int) -> Tensor:
    """Returns `count` of the images at even distances, first and last among them; all if there are no more."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()]


def sample_grid(images: Tensor, row_names: Sequence[str], column_names: Sequence[str], path: Path) -> Figure:
    """Draws images in rows and columns.

    Arguments:
        images: Pixels as uint8, with shape (R, K, C, H, W).
        row_names: R names, or none.
        column_names: K names, or none.
        path: The file to write.
    """
    cells = [[tile(image[None], 1) for image in row] for row in images]
    size = 0.5 if len(cells[0]) > 6 else 0.75
    with drawn(path, len(cells[0]) * size + 0.9, len(cells) * size + 0.3) as canvas:
        draw_cells(canvas.add_subplot(), cells, row_names, column_names)
    rows = f"rows {', '.join(row_names)}" if row_names else f"{len(cells)} rows"
    columns = f"columns {', '.join(column_names)}" if column_names else f"{len(cells[0])} columns"
    return Figure(path, f"Grid of samples: {rows}; {columns}.")


def draw_cells(ax: "Axes", cells: list[list[np.ndarray]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Puts tiles on a lattice of unit width, with names as tick labels."""
    margin, aspect = 0.04, cells[0][0].shape[0] / cells[0][0].shape[1]
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            extent = (c + margin, c + 1 - margin, (r + 1) * aspect - margin, r * aspect + margin)
            ax.imshow(cell, extent=extent, interpolation="nearest")
    ax.set(xlim=(0, len(cells[0])), ylim=(len(cells) * aspect, 0), aspect="equal")
    ax.set_xticks([c + 0.5 for c in range(len(columns))], columns)
    ax.set_yticks([(r + 0.5) * aspect for r in range(len(rows))], [name.replace(" ", "\n") for name in rows])
    ax.tick_params(top=False, labeltop=True, bottom=False, labelbottom=False, left=False)
    ax.spines[:].set_visible(False)
