"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_walk_the_house() -> None:
    agreement = runpy.run_path(str(EXAMPLES / "walk_the_house.py"))["walk"](epochs=2)
    assert len(agreement) == 2 and min(agreement) > 0.4


def test_other_clusterers() -> None:
    found = runpy.run_path(str(EXAMPLES / "other_clusterers.py"))["compare"](epochs=2)
    assert found["agglomerative"][0] == found["k-means"][0] == 20 and found["HDBSCAN"][0] > 5
    assert min(agreement for _, agreement in found.values()) > 0.4
