"""A made-up sixth method, added to a copy of the package as CONTRIBUTING says: four files, two of them new."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "deepcluster"

METHOD = '''
"""Predicts groups of images that were drawn once at random: a lower bound for every other method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcluster.methods.base import ExtractFeatures, WhitenedMethod
from deepcluster.clustering.whitening import Whitening
from deepcluster.methods.params import RandomGroupsParams
from deepcluster.models.heads import LinearClassifier, cluster_means
from deepcluster.random import seeded
from deepcluster.types import Batch, Clustering, TrainStep


class RandomGroups(WhitenedMethod):
    assignment: Tensor

    def build(self) -> None:
        p = self.params
        self.whitening = Whitening(p.whiten)
        self.head = LinearClassifier(self.backbone.dim, p.k, relu=self.backbone.head_relu)
        self.own_optimizers = {"head": self.make_optimizer(self.head.parameters())}
        self.register_buffer("assignment", torch.full((self.n,), -1, dtype=torch.int64))

    def due(self, step: int, steps_per_epoch: int) -> bool:
        return step % steps_per_epoch == 0

    def refresh(self, extract_features: ExtractFeatures, key: tuple[int, ...]) -> Clustering:
        features = extract_features()
        z, count = self.whiten(features, self.params.k)
        labels = torch.randint(self.params.k, (len(self.assignment),), generator=seeded(0))[features.index]
        centroids = cluster_means(torch.as_tensor(z), labels, self.params.k, seeded(1), self.group)
        found = self.scatter_to_dataset(features.index, z, labels.numpy(), centroids)
        self.assignment.copy_(torch.from_numpy(found.assignment))
        return found

    def loss(self, batch: Batch, step: TrainStep) -> dict[str, Tensor]:
        label = self.assignment[batch.index.to(self.assignment.device)]
        terms = [F.cross_entropy(self.head(self.backbone(view)), label, reduction="none") for view in batch.views]
        return {"loss": torch.stack([self.batch_group.mean(term) for term in terms]).mean()}
'''

PARAMS = '''
@dataclass(frozen=True)
class RandomGroupsParams(MethodParams):
    """Groups of images drawn at random."""

    k: int = 100
    """Number of groups."""
    whiten: int = 32
    """Dimensions of the whitened features."""


METHODS: dict'''

PRESET = '''
"""Random groups."""

from dataclasses import replace

from deepcluster.methods.params import RandomGroupsParams
from deepcluster.presets.preset import Preset
from deepcluster.presets.tiny import DEEPCLUSTER

TINY = Preset(
    replace(DEEPCLUSTER.run, epochs=1, method=RandomGroupsParams(k=20)),
    """Random groups of the digits.""",
)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the new method in it."""
    copy = tmp_path_factory.mktemp("src") / "deepcluster"
    shutil.copytree(PACKAGE, copy)  # compiled files, too: compiling all anew takes seconds
    (copy / "methods" / "random_groups.py").write_text(METHOD)
    (copy / "presets" / "random_groups.py").write_text(PRESET)
    replace_once(copy / "methods" / "params.py", "\nMETHODS: dict", PARAMS)
    target = '"deepcluster.methods.random_groups:RandomGroups"'
    replace_once(
        copy / "methods" / "params.py",
        '    "deepcluster": (',
        f'    "random-groups": (RandomGroupsParams, {target}),\n    "deepcluster": (',
    )
    presets = copy / "presets" / "__init__.py"
    replace_once(presets, "import deepcluster,", "import random_groups, deepcluster,")
    replace_once(presets, '    "tiny-odc"', '    "tiny-random-groups": random_groups.TINY,\n    "tiny-odc"')
    return copy


def replace_once(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new))


def differences(one: Path, other: Path) -> tuple[list[str], list[str]]:
    """Names of changed files and of files that only `other` has, in all folders."""
    compared = filecmp.dircmp(one, other, ignore=["__pycache__"])
    changed, new = list(compared.diff_files), list(compared.right_only)
    for name in compared.common_dirs:
        inner = differences(one / name, other / name)
        changed, new = changed + inner[0], new + inner[1]
    return changed, new


def test_a_new_method_touches_four_files(package: Path) -> None:
    changed, new = differences(PACKAGE, package)
    assert sorted(changed) == ["__init__.py", "params.py"]
    assert new == ["random_groups.py", "random_groups.py"]


def test_a_new_method_works_with_every_command(package: Path, tmp_path: Path) -> None:
    commands = [
        "train tiny-random-groups --data digits --out run --method.k 12 --image-size 16",
        "train --resume run --epochs 2",
        "assign run --data digits --out clusters.csv",
        "evaluate run knn",
        "doctor run --json",
        "plan tiny-random-groups --images 2000 --json",
        "report run",
        "train tiny-random-groups --help",  # the last one: help ends the process
    ]
    script = f"""
from deepcluster.cli.main import main
for command in {commands!r}:
    assert main(command.split()) == 0, command
"""
    environment = os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "--method.whiten" in done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["method"]["name"] == "random-groups"
    assert len((tmp_path / "clusters.csv").read_text().splitlines()) == 1798
    assert "knn20_top1" in (tmp_path / "run" / "evaluation" / "knn.json").read_text()
    assert (tmp_path / "run" / "report.html").is_file()
