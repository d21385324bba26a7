"""Which names can be drawn, and by which font: DejaVu Sans, which comes with matplotlib, or an installed one."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

import matplotlib

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
#: Families that have what DejaVu Sans has not; the first that is installed draws a letter.
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "Malgun Gothic", "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Arial Unicode MS",
    "Noto Emoji", "Noto Sans Symbols2", "Symbola", "Segoe UI Symbol", "Apple Symbols", "Unifont",
)  # fmt: skip


def drawable(text: str, bold: bool = False) -> str:
    """`text` in one line of letters that a font has; others become escapes such as \\n, \\u4e2d, \\U0001f98a."""
    return "".join(_drawable(letter, bold) for letter in text)


def verbatim(name: str, most: int = 80, bold: bool = False) -> str:
    """A name for a figure: drawable, of at most so many letters, and without formulas between dollar signs."""
    text = drawable(name[: most + 1], bold)
    text = text if len(text) <= most else text[: most - 3] + "..."
    # matplotlib leaves names that begin with an underscore out of legends
    return (" " * text.startswith("_") + text).replace("$", r"\$")


@cache
def font_file(letter: str, bold: bool = False) -> Path | None:
    """The file of the font that draws a letter; None where none does."""
    files = (DEJAVU / f"DejaVuSans{'-Bold' * bold}.ttf", *installed_fallbacks(bold).values())
    return next((file for file in files if ord(letter) in _codes(file)), None)


@cache
def installed_fallbacks(bold: bool = False) -> dict[str, Path]:
    """Family and file of those `FALLBACKS` that this machine has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    there = {font.name for font in fontManager.ttflist}
    weight = "bold" if bold else "normal"
    return {name: Path(findfont(FontProperties(family=name, weight=weight))) for name in FALLBACKS if name in there}


@cache
def _codes(file: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(file)).get_charmap())


@cache
def _drawable(letter: str, bold: bool) -> str:
    kind = unicodedata.category(letter)
    if kind == "Zs":
        return " "
    if kind == "Cf" or "\ufe00" <= letter <= "\ufe0f":  # joiners and the like, which have no shape of their own
        return ""
    if letter.isprintable() and font_file(letter, bold) is not None:
        return letter
    return letter.encode("unicode_escape").decode()
