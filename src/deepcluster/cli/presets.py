"""`deepcluster presets [NAME]`."""

from __future__ import annotations

import re
import textwrap
from json import dumps
from typing import Any

from deepcluster.cli.common import table_line


def presets(name: str | None = None, /, *, json: bool = False) -> None:
    """Lists the presets, or prints one with all its settings.

    Args:
        name: the preset to print.
    """
    from deepcluster.config import as_dict
    from deepcluster.presets import PRESETS, find_preset

    if name is None:
        if json:
            print(dumps({each: preset.summary for each, preset in PRESETS.items()}))
            return
        width = max(map(len, PRESETS)) + 2
        for each, preset in PRESETS.items():
            print(table_line(each, preset.summary, width))
        print("\n`deepcluster presets NAME` prints all settings of one; `deepcluster train`")
        print("without a preset chooses what suits the images and the machine.")
        return
    preset = find_preset(name)
    values = as_dict(preset.run)
    if json:
        print(dumps({"name": name, "about": preset.about, "settings": values}))
        return
    print(f"{name}\n")
    for paragraph in re.sub(r"\n {5,}", " ", preset.about.strip()).split("\n"):  # a longer one goes on further in
        width = 10_000 if "Command:" in paragraph else 79  # what is copied stays in one piece
        print(textwrap.fill(paragraph.strip(), width, initial_indent="    ", subsequent_indent="        "))
    print()
    for option, value in _flatten(values):
        print(f"--{option.replace('_', '-'):<28}{_as_typed(value)}")


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flatten(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _as_typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, (tuple, list)):
        return " ".join(f"{part:g}" for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value in (None, {}) else str(value)
