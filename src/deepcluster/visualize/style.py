"""The look of all pictures: one palette, quiet axes, labels at the lines; and how a picture gets to disk.

Colors are Okabe and Ito's, told apart by people with any color vision. Figures are made without pyplot, so
nothing here opens a window or keeps state. This file does not know what is drawn.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.io import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("#0072b2", "#d55e00", "#008f67", "#b0568f", "#a67c00", "#3d8fc4")
INK, QUIET, LINE, PAPER = "#1c2128", "#626b77", "#dfe3e8", "#ffffff"
DPI = 144
FONTS = ("DejaVu Sans",)  # comes with matplotlib: the same letters on every machine


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that lays itself out."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(
        figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    )


def quiet(axes: Axes, title: str, x: str, y: str) -> None:
    """Give `axes` a title at the left, names of both axes with their units, and little else."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, color=QUIET, fontsize=9)
    axes.set_ylabel(y, color=QUIET, fontsize=9)
    axes.set_facecolor("none")
    axes.tick_params(colors=QUIET, labelsize=9, length=0, which="both")
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def label(axes: Axes, lines: list[tuple[float, str, str]], height: float) -> None:
    """Write names at the right of their lines, in the lines' colors, moved apart where they would overlap.

    Args:
        lines: (height of the line's end in data, name, color).
        height: of the axes in inches, about; it is known for sure only when the figure is drawn.
    """
    gap = 11.5 / 72 / height  # one line of text
    place = axes.transScale + axes.transLimits
    floor, placed = -np.inf, []
    heights = [(float(np.clip(place.transform((1, y))[1], 0, 1)), name, color) for y, name, color in lines]
    for at, name, color in sorted(heights):
        floor = max(at, floor + gap)
        placed.append((floor, name, color))
    over = max(placed[-1][0] - 1, 0) if placed else 0
    for at, name, color in placed:
        axes.annotate(
            name,
            (1, at - over),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def png(picture: Figure | np.ndarray) -> bytes:
    """A figure, or an (H, W, 3) uint8 image, as PNG."""
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        from PIL import Image

        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    else:
        _canvas(picture).print_png(buffer)
    return buffer.getvalue()


def svg(picture: Figure) -> str:
    """A figure as an SVG element that takes the page's fonts and its colors, in dark mode too.

    The fixed colors become the page's `--ink`, `--quiet`, `--line` and `--series-1`, ...; the ids are made
    different for every call by the title, so that several figures can stand on one page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    title = picture.axes[0].get_title(loc="left") if picture.axes else ""
    salt = re.sub(r"\W+", "-", title)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": list(FONTS)}):
        picture.patch.set_alpha(0.0)
        FigureCanvasSVG(picture).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style[^>]*>\*\{[^<]*</style>", "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = re.sub(r' xmlns:?\w*="[^"]*"| version="1.1"', "", text)
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'", r"font: \1sans-serif", text)
    for name, color in {"ink": INK, "quiet": QUIET, "line": LINE, "paper": PAPER}.items():
        text = text.replace(color, f"var(--{name})")
    for number, color in enumerate(SERIES, 1):
        text = text.replace(color, f"var(--series-{number})")
    # matplotlib numbers its groups figure_1, text_1, ... in every file; a page may hold an id only once
    return re.sub(r'<g id="[^"]*"', "<g", text)


def save(picture: Figure | np.ndarray, path: str | Path) -> Path:
    """Write a figure or an (H, W, 3) uint8 image as PNG, whole or not at all, and return its path."""
    return write(path, png(picture))


def write(path: str | Path, content: bytes) -> Path:
    """Write bytes, whole or not at all, and return the path.

    Raises:
        DeepClusterError: the folder cannot be written.
    """
    file = Path(path)

    def fill(beside: Path) -> None:
        beside.write_bytes(content)

    try:
        return write_atomic(file, fill)
    except OSError as error:
        raise DeepClusterError(f"{file} cannot be written ({error.strerror or error}): make room there.") from error


def _canvas(picture: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(picture)
