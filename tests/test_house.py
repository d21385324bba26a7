"""The house itself: layers, lint, types and names."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import deepcluster as dc

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        "lint-imports --no-cache",
        "ruff check src tests benchmarks examples",
        "ruff format --check src tests benchmarks examples",
        "mypy",
    ],
)
def test_checks_pass(command: str) -> None:
    tool, *rest = shlex.split(command)
    if not (BIN / tool).exists():
        pytest.skip(f"{tool} is not installed beside this Python; `make test` installs it")
    done = subprocess.run([str(BIN / tool), *rest], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_public_names() -> None:
    assert len(dc.__all__) == len(set(dc.__all__))
    for name in dc.__all__:
        assert getattr(dc, name).__doc__ or name == "PRESETS", name
    assert set(dc.__all__) <= set(dir(dc))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dc.trian


def test_version_is_told_once() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared and declared[1] == dc.__version__


def test_constraints_name_packages_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r'[\w.-]+==[\w.+]+ ; python_version >= "3.11"', line), line


def test_every_dependency_is_explained_and_pinned() -> None:
    """The table of docs/trust.md lists pyproject.toml's packages with their extras, no more and no fewer."""
    declared = set()
    project = (ROOT / "pyproject.toml").read_text().partition("[project]")[2]
    for extra, listed in re.findall(r'^(\w+) = \[(?=\s*"[\w-]+>=)(.*?)\]', project, re.M | re.S):
        declared |= {(name, extra.replace("dependencies", "")) for name in re.findall(r'"([\w-]+)>=[\d.]+"', listed)}
    table = (ROOT / "docs" / "trust.md").read_text().partition("## Dependencies")[2]
    rows = re.findall(r"^\| ([\w-]+) \| (\w*) ?\| (.+) \| (.+) \|$", table, re.M)
    assert {(name, extra) for name, extra, *_ in rows if name != "package"} == declared and len(declared) > 30
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert {name for name, _ in declared} - pinned == {"s3fs", "gcsfs"}  # these follow fsspec
