"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of libraries that wait for work take the cores from other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

LONG_FILES = ("engine/test_processes.py", "benchmarks/test_smoke.py", "engine/test_cluster.py", "engine/test_watch.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: begun last, one of them would run on while the other cores are idle."""
    root = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(root).as_posix() not in LONG_FILES)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets, or a skip that says where it was looked for."""
    named = os.environ.get("DEEPCLUSTER_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set DEEPCLUSTER_TEST_DATA to the folder that holds them")
    return folder


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's own image cache."""
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _seeded_generators() -> None:
    """No test's draws depend on which tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 libraries draw from it, our code does not
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each reading of a table's file gave, from here on."""
    from deepcluster.features.block_reader import Rows

    original: Any = Rows.read
    found: list[int] = []

    def read(rows: Rows, start: int, into: np.ndarray) -> np.ndarray:
        found.append(len(into))
        result: np.ndarray = original(rows, start, into)
        return result

    monkeypatch.setattr(Rows, "read", read)
    return found
