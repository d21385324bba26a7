"""What a run holds does not grow with its epochs."""

from __future__ import annotations

import runpy
from pathlib import Path
from statistics import median

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "length.py"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["deepcluster", "odc"])
def test_memory_files_and_threads_are_flat_over_the_epochs(method: str, tmp_path: Path) -> None:
    """5 kB an epoch at most: 2 % over 5,000 epochs, which `benchmarks/length.py` trains. Networks that were traced
    anew each time took 14 kB."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), np.uint8))
    samples = runpy.run_path(str(BENCHMARK))["watch"](tmp_path, method, 300)
    (_, before, *held), (_, after, *holds) = (
        [median(values) for values in zip(*part, strict=True)] for part in (samples[90:110], samples[-20:])
    )
    assert after - before < 200 * 5_000 and np.abs(np.subtract(held, holds)).max() <= 1
