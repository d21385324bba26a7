"""docs/trust.md names a test for each promise, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_has_its_test() -> None:
    promised = (ROOT / "docs/trust.md").read_text().partition("## Dependencies")[0]
    rows = re.findall(r"^\| .*$", promised, re.MULTILINE)[1:]
    assert len(rows) > 12
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[2])
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), (file, test)
