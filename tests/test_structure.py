"""The shape of the package: DeepCluster in seven files, and methods that nobody else needs to know."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcluster.methods.params import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deepcluster"
OUTSIDE = [file for file in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "methods" not in file.parents]
CLASSES = {name for kind, target in METHODS.values() for name in (kind.__name__, target.rpartition(":")[2])}


def test_deepcluster_is_seven_files_that_contributing_lists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.search(r"DeepCluster end to end is seven files[^:]*:\s*(.*?)\n\n", text, re.S)
    assert listed is not None
    files = re.findall(r"`([\w/]+\.py)`", listed[1])
    assert len(files) == 7
    lines = {file: len((PACKAGE / file).read_text().splitlines()) for file in files}
    assert sum(lines.values()) <= 1_500, lines


def comparisons(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            if "recipe" in ast.unparse(node):  # the papers' training recipes of evaluation have the methods' names
                continue
            for part in (node.left, *node.comparators):
                if isinstance(part, ast.Constant) and part.value in METHODS:
                    yield f"line {node.lineno}: comparison with {part.value!r}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            named = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            if named & CLASSES:
                yield f"line {node.lineno}: isinstance of {', '.join(sorted(named & CLASSES))}"


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_methods_know_methods(file: Path) -> None:
    """No isinstance on a method or its parameters, and no comparison with a method's name, outside methods/."""
    assert list(comparisons(ast.parse(file.read_text()))) == []


def test_a_comparison_with_a_method_is_noticed() -> None:
    found = list(comparisons(ast.parse("if name == 'odc' or isinstance(method, DeepCluster):\n    pass")))
    assert len(found) == 2


def test_only_what_trains_loads_lightning() -> None:
    """It takes as long as torch itself to load, which `assign`, `cluster` and `explore` need not wait for."""
    line = re.compile(r"^(?:from|import) (?:lightning_fabric|deepcluster\.engine\.fabric)\b", re.M)
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if line.search(file.read_text())}
    assert found == {"engine/fabric.py", "engine/train.py", "estimate/timing.py"}
    theirs = re.compile(r"^(?:from|import) deepcluster\.(?:engine\.train|estimate\.timing)\b", re.M)
    assert not any(theirs.search(file.read_text()) for file in PACKAGE.rglob("*.py"))
