"""What evaluations of a run found, as its report and its model card list them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deepcluster.engine.model import MODEL
from deepcluster.errors import DeepClusterError
from deepcluster.reading import read_json
from deepcluster.seal import seal_of


class Evaluation(NamedTuple):
    """One table of RUN/evaluation: rows of (score, per cent, deviation) and its settings."""

    protocol: str
    rows: list[tuple[str, str, str]]
    settings: list[tuple[str, str]]


def evaluations(folder: Path) -> list[Evaluation]:
    """Every readable RUN/evaluation/*.json, by name, and those of the untrained network behind them."""
    found = []
    kept, now = folder / "evaluation", seal_of(folder / MODEL)
    for file in (*sorted(kept.glob("*.json")), *sorted(kept.glob("untrained/*.json"))):
        try:
            content = read_json(file, advice="evaluate the run again.")
        except DeepClusterError:
            continue  # a file of someone else's; the page is about the run
        values, settings = content.get("scores"), content.get("settings") or {}
        if not isinstance(values, dict) or not isinstance(settings, dict):
            continue
        rows = [
            (name, _percent(value), _percent(values.get(f"{name}_std"), empty=""))
            for name, value in values.items()
            if not (name.endswith("_std") and name.removesuffix("_std") in values)
        ]
        said = ", untrained" if file.parent != kept else ""
        if now and settings.get("model", now) != now:
            said += ", of the run before it was trained further: evaluate it again"
        found.append(Evaluation(str(content.get("protocol", file.stem)) + said, rows, flat(settings)))
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, json.dumps(value, ensure_ascii=False, default=str).strip('"')))
    return rows


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any, empty: str = "n/a") -> str:
    return f"{100 * value:.1f}" if is_number(value) else empty
