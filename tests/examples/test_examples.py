"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_walk_the_house() -> None:
    agreement = runpy.run_path(str(EXAMPLES / "walk_the_house.py"))["walk"](epochs=2)
    assert len(agreement) == 2 and min(agreement) > 0.4
