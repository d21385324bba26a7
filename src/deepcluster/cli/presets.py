"""`deepcluster presets [NAME]`."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from deepcluster.cli.parse import parse


@dataclass(frozen=True)
class Presets:
    """Lists the presets, or prints one whole."""

    name: Positional[str | None] = None
    """The preset to print."""
    json: bool = False
    """Print one JSON object."""


def command(arguments: list[str]) -> None:
    """Prints."""
    chosen = parse(Presets, arguments, prog="deepcluster presets")
    from deepcluster.config import as_dict
    from deepcluster.presets import PRESETS, find_preset

    if chosen.name is None:
        if chosen.json:
            print(json_module.dumps({name: preset.summary for name, preset in PRESETS.items()}))
            return
        width = max(map(len, PRESETS)) + 2
        for name, preset in PRESETS.items():
            print(f"{name:<{width}}{preset.summary}")
        return
    preset = find_preset(chosen.name)
    values = as_dict(preset.run)
    if chosen.json:
        print(json_module.dumps({"name": chosen.name, "about": preset.about, "settings": values}))
        return
    print(f"{chosen.name}\n\n    {preset.about.strip()}\n")
    for name, value in flat(values):
        print(f"--{name.replace('_', '-'):<28}{shown(value)}")


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, (tuple, list)):
        return " ".join(f"{part:g}" for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value in (None, {}) else str(value)
