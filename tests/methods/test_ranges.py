"""A number that a method cannot take is refused by its own name, and no other setting is spoken of."""

from __future__ import annotations

from pathlib import Path

import pytest

import deepcluster as dc
from deepcluster.config import names, override
from deepcluster.errors import DeepClusterError
from deepcluster.presets import find_preset
from restarts import images

WRONG = {
    "deepcluster": {
        "reassign": 0.0, "whiten": -1, "iterations": 0, "clusterings": 0, "temperature": 0.0, "ema_decay": 1.0,
    },
    "odc": {
        "k": 0, "feature_dim": 0, "hidden": 0, "dropout": 1.0, "momentum": 0.0, "centroid_every": 0, "handle_every": 0,
        "min_size": 0, "iterations": 0,
    },
    "deepcluster-v2": {
        "k": 0, "clusterings": 0, "memory_views": 0, "feature_dim": 0, "hidden": 0, "temperature": 0.0,
        "iterations": 0, "reassign": 0.0,
    },
    "swav": {
        "k": 0, "feature_dim": 0, "hidden": 0, "temperature": 0.0, "epsilon": 0.0, "iterations": 0, "queue_size": -1,
        "queue_epoch": -1.0, "freeze_epochs": -1.0, "reassign": 0.0,
    },
}  # fmt: skip
SMALL = {"epochs": 1, "batch_size": 16, "image_size": 12}


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, values in WRONG.items() for name in values], ids="-".join
)
def test_the_wrong_one_is_named_alone(method: str, name: str, tmp_path: Path) -> None:
    run = override(find_preset(f"tiny-{method}").run, SMALL | {"method.k": 4, f"method.{name}": WRONG[method][name]})
    with pytest.raises(DeepClusterError, match=rf"^--method.{name.replace('_', '-')} is .*: give ") as caught:
        dc.train(run, images(), tmp_path / "run", quiet=True)
    others = [other.replace("_", "-") for other in names(run) if other != f"method.{name}"]
    assert not any(f"--{other}" in str(caught.value) for other in others)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["deepcluster", "odc", "deepcluster-v2"])
def test_too_many_clusters_get_one_number_to_try(method: str, tmp_path: Path) -> None:
    run = override(find_preset(f"tiny-{method}").run, SMALL | {"method.k": 65})
    few = {"deepcluster": 6, "odc": 3, "deepcluster-v2": 3}[method]
    with pytest.raises(DeepClusterError) as caught:
        dc.train(run, images(), tmp_path / "run", quiet=True)
    assert str(caught.value).endswith(f"64 images for 65 clusters: ask for fewer, such as --method.k {few}.")


@pytest.mark.parametrize("method", ["deepcluster", "odc", "deepcluster-v2", "swav"])
def test_one_cluster_alone_is_not_passed_over_in_silence(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dc.train(override(find_preset(f"tiny-{method}").run, SMALL | {"method.k": 1}), images(), tmp_path / "run")
    assert "one cluster alone" in capsys.readouterr().out
