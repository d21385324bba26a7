"""The commands `train` and `cluster` as functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deepcluster import config
from deepcluster.config import TrainRun
from deepcluster.data.open import open_images
from deepcluster.engine import train as engine
from deepcluster.engine.cluster import cluster_images
from deepcluster.engine.log import Screen
from deepcluster.engine.model import begin
from deepcluster.engine.occupy import settle
from deepcluster.engine.run import Run
from deepcluster.engine.run_folder import read_config, resolved
from deepcluster.errors import DeepClusterError
from deepcluster.presets import find_preset
from deepcluster.presets.choose import FOLLOWED, choose


def train(
    preset: str | TrainRun | None = None,
    data: Any = None,
    out: str | Path | None = None,
    *,
    minutes: float | None = None,
    from_: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
    clusterer: Any = None,
    **values: Any,
) -> Run:
    """Trains a preset, settings of your own, or what suits the images, and returns the finished run.

    Args:
        preset: a preset's name, or a `TrainRun`; None = method, network and their settings are chosen from the images
            and the machine, see `presets.choose`.
        data: a folder, tar shards, a list of files, `digits`, an array (N, H, W[, C]) uint8, a list of paths.
        out: the run folder to write.
        minutes: what the whole run may take, in place of `epochs`; without a preset, and without `epochs`, 10.
        from_: trained weights to begin with: a run folder, a file, the name of a backbone with published weights, or
            "auto"; network, Sobel filters and normalization are theirs. With `resume`, a checkpoint of the run.
        overwrite: replace a run that `out` already holds.
        resume: go on from the last checkpoint of the run that `out` holds, with the settings it was started with; only
            `epochs` may be larger, which makes the run longer, and `lr` another from there on. Others are refused.
        quiet: no lines, no progress bar.
        clusterer: takes the place of k-means: anything with scikit-learn's `fit_predict`, such as
            `sklearn.cluster.AgglomerativeClustering(50)`. It is given whitened, L2-normalized features (N, P), and a
            fresh copy of it is fitted at each clustering; images it labels -1 wait for the next.
        values: settings to change, by name (`k=200`), group (`method__k=200`) or both as a dict; without a preset also
            `method="odc"`, the method itself.

    Raises:
        DeepClusterError: bad data, setting or folder, in one sentence.

    Examples:
        >>> import deepcluster as dc
        >>> run = dc.train("tiny-deepcluster", data="digits", out="runs/digits", epochs=2)  # doctest: +SKIP
        >>> run.assignment.shape  # doctest: +SKIP
        (1797,)
    """
    if data is None or out is None:
        raise DeepClusterError("train needs data and out: train(data='photos/', out='runs/photos', minutes=10).")
    if minutes is not None and "epochs" in values:
        raise DeepClusterError(config.BOTH)
    if minutes is not None:
        values["minutes"] = minutes
    if resume:
        if overwrite:
            raise DeepClusterError("resume goes on with a run, and overwrite replaces it: leave one of them out.")
        start = None if from_ is None else Path(from_)
        return _resume(preset, values, data, Path(out), Screen(quiet), clusterer, start)
    screen, name = Screen(quiet), "custom"
    if preset is None:
        data = open_images(data)
        followed = {each: values[each] for each in FOLLOWED if each in values}
        method = values.pop("method") if isinstance(values.get("method"), str) else None
        chosen = choose(data, method=method, from_=None if from_ is None else str(from_), **followed)
        name, preset = config.AUTO, chosen.run if "epochs" not in values else replace(chosen.run, minutes=None)
        screen.print(chosen.sentence(config.override(preset, values)))
    elif isinstance(preset, str):
        name, preset = preset, find_preset(preset).run
    if from_ is not None and name != config.AUTO:
        preset = begin(preset, from_, values.get("image_size"))
    run = config.override(preset, values)
    return engine.train(run, data, out, preset=name, overwrite=overwrite, screen=screen, clusterer=clusterer)


def cluster(data: Any, out: str | Path, *, quiet: bool = False, **values: Any) -> Run:
    """Groups images by the features of a pretrained network that is not trained, and returns the finished run.

    Args:
        data: a folder, tar shards, a list of files, `digits`, an array (N, H, W[, C]) uint8, a list of paths.
        out: the run folder to write.
        quiet: no lines, no progress bar.
        values: `k` (None = found out), `backbone`, `image_size`, `algorithm`, `options`, `whiten`, `seed`, `device`,
            `processes` and `overwrite`, as in `engine.cluster.cluster_images`.

    Raises:
        DeepClusterError: bad data, backbone, setting or folder, in one sentence.

    Examples:
        >>> import deepcluster as dc
        >>> run = dc.cluster("photos/", out="runs/photos")  # doctest: +SKIP
        >>> run.assign("new_photos/").save("clusters.csv")  # doctest: +SKIP
    """
    return cluster_images(data, out, screen=Screen(quiet), **values)


def _resume(
    preset: str | TrainRun | None,
    values: dict[str, Any],
    data: Any,
    out: Path,
    screen: Screen,
    clusterer: Any,
    start: Path | None,
) -> Run:
    settle(out, screen.warn)
    before = config.from_dict(read_config(out)["settings"])
    asked = config.override(preset if isinstance(preset, TrainRun) else before, values)
    asked = replace(asked, method=asked.method.with_clusterer(clusterer))
    changed = config.differing(config.as_dict(before), config.as_dict(resolved(asked)))
    changed += ["method"] * (type(asked.method) is not type(before.method))
    if set(changed) - {"epochs", "optimizer.lr"}:
        raise DeepClusterError(
            f"{out} was started with other settings than these ({', '.join(changed)}): leave them out to resume it, or"
            " start another run in another folder."
        )
    return engine.train_again(
        out,
        data,
        screen,
        clusterer,
        epochs=asked.epochs if "epochs" in changed else None,
        lr=asked.optimizer.lr if "optimizer.lr" in changed else None,
        start=start,
        preset=preset if isinstance(preset, str) else None,
    )
