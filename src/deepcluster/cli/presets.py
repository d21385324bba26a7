"""`deepcluster presets [NAME]`."""

from __future__ import annotations

from json import dumps
from typing import Any


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
            print(f"{each:<{width}}{preset.summary}")
        return
    preset = find_preset(name)
    values = as_dict(preset.run)
    if json:
        print(dumps({"name": name, "about": preset.about, "settings": values}))
        return
    print(f"{name}\n\n    {preset.about.strip()}\n")
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
