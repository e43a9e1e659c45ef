"""Figures of a run: samples by coupling and NFE, FD against NFE and against cost, paths, the teacher's noise.

The ending of a path chooses the format. SVG follows the reader's light or dark scheme and is drawn for the width of a
phone; the same input gives the same bytes. Every function returns the figure with an alternative text that states what
it shows, numbers included.
"""

from nfm.figures.cost import SAMPLES, Payback, Spent, fd_against_cost, payback
from nfm.figures.coupling import coupling_diagnostics, draw_card, paths
from nfm.figures.curves import fd_curves, hero
from nfm.figures.samples import sample_grid, several_steps, spread_over, tile
from nfm.figures.style import COLOURS, DARK, SPARE, Figure, colours, label

__all__ = [
    "COLOURS",
    "DARK",
    "SAMPLES",
    "SPARE",
    "Figure",
    "Payback",
    "Spent",
    "colours",
    "coupling_diagnostics",
    "draw_card",
    "fd_against_cost",
    "fd_curves",
    "hero",
    "label",
    "paths",
    "payback",
    "sample_grid",
    "several_steps",
    "spread_over",
    "tile",
]
