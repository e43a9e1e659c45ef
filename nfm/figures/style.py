"""How every figure looks: names, colours, the canvas, light and dark."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfm.artifacts import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

LABELS = {
    "independent": "FM",
    "minibatch-ot": "minibatch OT",
    "semidiscrete-ot": "semidiscrete OT",
    "teacher": "NFM",
    "inverse-regression": "inverse regression",
}
# The baseline is grey, optimal transport blue, the teacher's coupling the one warm colour. Lightness differs too.
COLOURS = {
    "independent": "#737373",
    "minibatch-ot": "#2b8cc9",
    "semidiscrete-ot": "#00569b",
    "teacher": "#d55e00",
    "inverse-regression": "#7a003c",
}
SPARE = ("#009e73", "#b8559b", "#a07800", "#5b4bb0")
DASHES = ("-", "--", ":")  # tell unknown names apart that share a colour
INK, MUTED, RULE, PAPER = "#1f2328", "#6a7078", "#d9dce0", "#fffffe"
DARK = {  # what a colour turns into on a dark screen
    **{INK: "#e4e2dd", MUTED: "#9aa0a8", RULE: "#3a3f46", PAPER: "#15171a"},
    **{"#737373": "#9c9c9c", "#2b8cc9": "#79c3ee", "#00569b": "#3b86cf", "#d55e00": "#f07d2e", "#7a003c": "#dc7ba6"},
}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "nfm",
}


@dataclass(frozen=True)
class Figure:
    """A figure's file and what a reader who does not see it should know."""

    path: Path
    alt: str


def label(coupling: str) -> str:
    """Returns a coupling's name as figures and tables print it."""
    return LABELS.get(coupling, coupling)


def colours(couplings: Sequence[str]) -> dict[str, str]:
    """Returns one colour a coupling, the same in every figure; unknown names share four spare ones in turn."""
    unknown = [name for name in couplings if name not in COLOURS]
    spare = {name: SPARE[i % len(SPARE)] for i, name in enumerate(unknown)}
    return {name: COLOURS.get(name) or spare[name] for name in couplings}


def dashes_of(names: Sequence[str]) -> dict[str, str]:
    """Returns the dashes of unknown names, which tell those apart that share a colour."""
    unknown = [name for name in names if name not in COLOURS]
    return {name: DASHES[i // len(SPARE) % len(DASHES)] for i, name in enumerate(unknown)}


@contextmanager
def drawn(path: Path, width: float, height: float, layout: Any = "constrained") -> Iterator["Canvas"]:
    """Gives a canvas of that size, inches, which is written when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas((width, height), layout=layout)
        yield canvas
        tight: Any = {"bbox_inches": "tight", "pad_inches": 0.06}  # labels beside square images would be cut
        with atomic_path(path) as temporary:
            if path.suffix == ".svg":
                canvas.savefig(temporary, format="svg", transparent=True, metadata={"Date": None}, **tight)
                temporary.write_text(_with_dark_scheme(temporary.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                canvas.savefig(temporary, format=path.suffix[1:], dpi=200, **tight)


def _with_dark_scheme(svg: str) -> str:
    """Adds what the colours turn into on a dark screen."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    head = '<style type="text/css">'
    assert head in svg
    return svg.replace(head, f"{head}@media screen and (prefers-color-scheme: dark){{{rules}}}\n", 1)
