"""The look of all pictures: one palette, quiet axes, labels at the lines; and how a picture gets to disk.

Colors are Okabe and Ito's, told apart by people with any color vision. Figures are made without pyplot, so
nothing here opens a window or keeps state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deepcluster.io import write_bytes
from deepcluster.visualize.letters import installed_fallbacks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Picture: TypeAlias = "Figure | np.ndarray"
"""A figure, or an (H, W, 3) uint8 image."""
Pictures = Mapping[str, Picture]
"""Name of a file, without its ending -> what is in it."""
SERIES = ("#0072b2", "#d55e00", "#008f67", "#b0568f", "#a67c00", "#3d8fc4")
INK, QUIET, LINE, PAPER = "#1c2128", "#626b77", "#dfe3e8", "#ffffff"
DASHES = (0, (4, 3))
DPI = 144


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches with a constrained layout."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(
        figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    )


def title(axes: Axes, text: str) -> None:
    """A bold title at the left of the axes."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)


def subtitle(page: Figure, text: str) -> None:
    """A line at the top left of the figure."""
    page.suptitle(text, x=0.012, ha="left", fontsize=11, color=QUIET)


def quiet(axes: Axes, text: str, x: str, y: str) -> None:
    """Give `axes` a title at the left, names of both axes with their units, and little else."""
    title(axes, text)
    axes.set_xlabel(x, color=QUIET, fontsize=9)
    axes.set_ylabel(y, color=QUIET, fontsize=9)
    axes.set_facecolor("none")
    axes.tick_params(colors=QUIET, labelsize=9, length=0, which="both")
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    ticks(axes.yaxis, most=5)


def ticks(axis: Axis, *, most: int = 6, integers: bool = False) -> None:
    """At most so many ticks at round values, or at whole `integers`: thousands with a comma, no powers of ten. Call it
    when limits are set."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axis.get_scale() == "linear":
        whole = {"integer": True, "min_n_ticks": 1} if integers else {}
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], **whole))
    elif axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def level(axes: Axes, height: float, name: str = "", *, left: bool = False, color: str = QUIET) -> None:
    """A dashed horizontal line at `height` (in data), with its name above it at one of its ends."""
    axes.axhline(height, color=color, linewidth=1, linestyle=DASHES)
    axes.annotate(
        name, (0 if left else 1, height), xycoords=("axes fraction", "data"), xytext=(3 if left else -2, 3),
        textcoords="offset points", ha="left" if left else "right", color=color, fontsize=9,
    )  # fmt: skip


def label(axes: Axes, lines: list[tuple[float, str, str]], height: float) -> None:
    """Write names at the right of their lines, in the lines' colors, moved apart where they would overlap.

    Args:
        lines: (height of the line's end in data, name, color).
        height: of the axes in inches, about; it is known for sure only when the figure is drawn.
    """
    gap = 11.5 / 72 / height  # one line of text
    to_axes = axes.transScale + axes.transLimits
    floor, placed = -np.inf, []
    heights = [(float(np.clip(to_axes.transform((1, y))[1], 0, 1)), name, color) for y, name, color in lines]
    for at, name, color in sorted(heights):
        floor = max(at, floor + gap)
        placed.append((floor, name, color))
    over = max(placed[-1][0] - 1, 0) if placed else 0
    for at, name, color in placed:
        axes.annotate(
            name, (1, at - over), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points", color=color,
            fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip


def png(picture: Picture) -> bytes:
    """A figure, or an (H, W, 3) uint8 image, as PNG."""
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        from PIL import Image

        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    else:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.text import Text

        for text in picture.findobj(Text):
            text.set_fontfamily(["DejaVu Sans", *installed_fallbacks()])
        canvas: Any = FigureCanvasAgg(picture)
        canvas.print_png(buffer)
    return buffer.getvalue()


def svg(picture: Figure) -> str:
    """A figure as an SVG element that takes the page's fonts and its colors, in dark mode too.

    The fixed colors become the page's `--ink`, `--quiet`, `--line` and `--series-1`, ...; the ids are made
    different for every call by the title, so that several figures can stand on one page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    salt = re.sub(r"\W+", "-", picture.axes[0].get_title(loc="left") if picture.axes else "")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": ["DejaVu Sans"]}):
        picture.patch.set_alpha(0.0)
        canvas: Any = FigureCanvasSVG(picture)
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    text = f'<svg {view[0]} role="img"{text[text.index(">") :]}'  # neither a fixed size nor names of XML
    text = re.sub(r"<style[^>]*>\*\{[^<]*</style>", "", text)
    text = re.sub(r' xmlns:?\w*="[^"]*"', "", text)
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'", r"font: \1sans-serif", text)
    colors = {"ink": INK, "quiet": QUIET, "line": LINE, "paper": PAPER}
    colors |= {f"series-{number}": color for number, color in enumerate(SERIES, 1)}
    for name, color in colors.items():
        text = text.replace(color, f"var(--{name})")
    # matplotlib numbers its groups figure_1, text_1, ... in every file; a page may hold an id only once
    return re.sub(r'<g id="[^"]*"', "<g", text)


def save(picture: Picture, path: str | Path) -> Path:
    """Write a figure or an (H, W, 3) uint8 image as PNG and return its path."""
    return write_bytes(Path(path), png(picture))
