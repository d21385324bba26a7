"""A tiny run that the engine trained, on noisy squares whose corner has their index as shade, and copies of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.config import override
from deepcluster.engine import train
from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run, load_run
from deepcluster.presets import find_preset

HOSTILE = "b <img src=x onerror=alert(1)> & 'two'"
N, K = 60, 5
"""Images that can be decoded, and clusters; image 60 is torn."""


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twenty noisy squares; the second class has markup in its name."""
    draw = np.random.default_rng(0)
    shapes = draw.integers(0, 200, (3, 20, 26, 3))
    folder = tmp_path_factory.mktemp("squares")
    for index in range(N):
        file = folder / ("a ant", HOSTILE, "c cow")[index // 20] / f"{index:02d}.png"
        file.parent.mkdir(exist_ok=True)
        picture = shapes[index // 20] + draw.integers(0, 55, (20, 26, 3))
        picture[:2, :6] = index  # the corner of the picture, and of its central square
        Image.fromarray(picture.astype(np.uint8)).save(file)
    (folder / "c cow" / "torn.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run as it was trained: read it, and leave it as it is."""
    values = {"epochs": 2, "k": K, "whiten": 8, "batch_size": 16, "image_size": 16, "seed": 3}
    settings = override(find_preset("tiny-deepcluster").run, values)
    folder = tmp_path_factory.mktemp("trained") / "run"
    train.train(settings, squares, folder, screen=Screen(quiet=True))
    return load_run(folder, device="cpu")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the run in a folder of its own."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return load_run(tmp_path / "run", device="cpu")


def rewritten(
    run: Run, *, assignment: np.ndarray | None = None, metrics: list[dict[str, Any]] | None = None, **config: Any
) -> Run:
    """The run read back after its clusters, its metrics, or entries of its run.json were replaced."""
    if assignment is not None:
        np.save(run.folder / "assignment.npy", assignment.astype(np.int64))
    if metrics is not None:
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (run.folder / "run.json").write_text(json.dumps(run.config | config))
    return load_run(run.folder, device="cpu")


def metrics_row(epoch: int, k: int, n: int) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "epoch": epoch,
        "loss": math.log(k) * 0.9**epoch if k > 1 else 0.0,
        "nmi_previous": None if epoch == 0 else 0.5 + 0.01 * epoch,
        "reassigned": 1.0 if epoch == 0 else 0.4,
        "clusters_used": k,
        "size_min": 0,
        "size_max": n,
        "size_entropy": 0.9,
        "lr": 0.05,
        "images_per_second": 900.0 + epoch,
        "seconds_train": 2.0,
        "seconds_features": 0.5,
        "seconds_cluster": 0.25,
        "nmi_labels": 0.3,
        "purity": 0.6,
    }
