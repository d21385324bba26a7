"""Groups of images by the features of a network that is not trained: what `deepcluster cluster` does with images.

The result is a run folder like a trained one, so that whatever reads those (assign, report, explore, evaluate, export)
works on it. Features are written in parts, and an interrupted run goes on after the last finished part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.clustering.algorithms import check_options, make_clusterer, needs_k
from deepcluster.clustering.neighbor_start import neighbor_start
from deepcluster.clustering.tables import TableClusters, cluster_table
from deepcluster.clustering.whitening import Whitening
from deepcluster.config import BackboneParams, TrainRun
from deepcluster.data.cache import SMALL, Pixels, load_pixels
from deepcluster.data.open import open_images
from deepcluster.digest import digest
from deepcluster.distributed import SINGLE, ProcessGroup, current, launched
from deepcluster.engine import run_folder
from deepcluster.engine.describe import FEATURES, FITTED, PART, described, open_describer, reduced_width
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.engine.occupy import occupy_to_group
from deepcluster.engine.run import Run, load_run
from deepcluster.engine.subject import short_side
from deepcluster.errors import DeepClusterError, counted
from deepcluster.features.table import open_table
from deepcluster.io import scratch_folder, write_json
from deepcluster.methods.params import FrozenParams
from deepcluster.models.pretrained import is_fitted
from deepcluster.reading import parse_json
from deepcluster.types import Clustering, ClusterTree

PRESET = "cluster"
"""What run.json names as the preset."""


def cluster_images(
    data: Any,
    out: Path | str,
    *,
    backbone: str = "auto",
    image_size: int | None = None,
    k: int | None = None,
    algorithm: str = "kmeans",
    options: dict[str, Any] | None = None,
    whiten: int = 0,
    seed: int = 0,
    device: str = "auto",
    processes: int = 1,
    overwrite: bool = False,
    again: bool = False,
    screen: Screen | None = None,
    part: int = PART,
) -> Run:
    """Groups images by a pretrained backbone's features and returns the finished run.

    Called again for a folder in which it was interrupted, with the same arguments, it goes on. With `overwrite` and,
    say, another k it keeps the features that are there.

    Args:
        data: what `open_images` takes.
        out: the run folder.
        backbone: "auto", a backbone by name, a file of weights, or a run; see `load_subject`. "patches" is fitted to
            the images themselves and needs no weights from elsewhere.
        image_size: side of the images that the network sees, in pixels; None = the images' own, within 96 and 224 (16
            and 96 for patches). Runs and files have their own.
        k: number of clusters; None = chosen from the features, for algorithms that need to be told.
        algorithm: a name in `clustering.algorithms.ALGORITHMS`.
        options: of the algorithm, by their names there.
        whiten: PCA-whiten to this width, in place of the default embedding; 0 = do not.
        seed: of all random draws.
        processes: on this machine, which share the images; the first one groups and writes. torchrun and SLURM set
            their number themselves.
        again: group again where the same run is there, since what was to follow it was cut short.
        part: images in each part of the features, about.

    Raises:
        DeepClusterError: bad data, backbone, options or folder; fewer images than clusters.
        Interrupted: Ctrl-C or SIGTERM, after the parts that are finished were kept.
    """
    screen, folder = screen or Screen(), Path(out)
    given = dict(options or {}) | ({} if k is None else {"k": k})
    check_options(algorithm, given)
    with _several(processes, folder, device) as (group, here), ExitStack() as held:
        screen = screen if group.is_first else Screen(quiet=True)
        with group.collective_section():
            source = open_images(data)
            if k is not None and k > len(source):
                raise DeepClusterError(
                    f"{counted(len(source), 'image')} cannot form {k:,} clusters: give a smaller --k."
                )
            run_folder.outside_images(folder, source)
            name, subject = open_describer(
                source, folder, backbone, image_size=image_size, device=device, screen=screen
            )
            fitted = is_fitted(name)
            # Of several processes each decodes its share alone; which images are bad decides what is fitted to.
            kept = SMALL if group.is_single or (fitted and group.is_first) else 0
            pixels = load_pixels(
                source,
                short_side=short_side(subject.image_size),
                cache_gb=kept / 1e9,
                workers=max(1, (os.cpu_count() or 1) // here),
            )
            made = {key: value for key, value in subject.backbone.config.items() if key != "image_size"}
            run = TrainRun(
                epochs=0,
                seed=seed,
                image_size=subject.image_size,
                device=device,
                method=FrozenParams(k=k or 0, algorithm=algorithm, options=given, whiten=whiten),
                backbone=BackboneParams(made.pop("name"), made.pop("sobel"), options=made),
            )
            config = run_folder.about(run, PRESET, source, pixels, group=group)
            weights = digest(subject.backbone.config, seed) if fitted else digest(subject.backbone)
            config |= {"backbone": run_folder.absolute(name), "weights": weights}
            config["id"] = digest(config["id"], config["weights"])
        run_folder.same_everywhere(group, config["id"], f"images as {source.name}, or weights as {name}")
        with group.collective_section():
            if group.is_first:
                held.enter_context(_occupied(folder, config, overwrite, again, screen))
        describing = described(name, subject, pixels, folder, screen, seed=seed, part=part, group=group)
        with describing as (bad, bar), group.collective_section():
            if group.is_first:
                run_folder.write_bad_images(folder, pixels)
                bar.describe("grouping")
                embedding = Whitening(whiten or reduced_width(subject), whiten=whiten > 0)
                table = open_table(folder / FEATURES)[0]
                how: dict[str, Any] = {"seed": seed, "start_near": True, "embedding": embedding, "bad": bad}
                with scratch_folder(folder / FEATURES) as scratch:
                    found, choice = cluster_features(table, algorithm, given, scratch=scratch, **how)
                run_folder.tell_bad(pixels, screen)
                if choice is not None:
                    screen.print(choice.sentence)
                steps = [embedding, *getattr(found.clusterer, "embedding_", ())]
                _write_run(folder, Model(subject.backbone, found.centroids, steps, _tree(found)), found, choice, pixels)
    return load_run(folder, device=device)


@contextmanager
def _several(processes: int, folder: Path, device: str) -> Iterator[tuple[ProcessGroup, int]]:
    """All processes of a grouping in `folder`, as long as the context lasts, and how many of them are on this machine;
    DeepClusterError for another number than the launcher's, or one that this machine has no devices for."""
    if processes < 1:
        raise DeepClusterError(f"--processes is {processes}: give at least 1.")
    here = (launched() or (processes, 1))[0]
    if processes == 1 and launched() is None:
        yield SINGLE, here
        return
    from deepcluster.engine.fabric import make_fabric, together

    with together(folder):
        make_fabric(TrainRun(precision="32", processes=processes, device=device, method=FrozenParams()))
        yield current(), here


def _write_run(folder: Path, model: Model, found: TableClusters, choice: Any, pixels: Pixels) -> None:
    """Writes what is left behind, run.json as the last of it."""
    objective = float(np.nansum(found.distance.astype(np.float64) ** 2))
    clustering = Clustering(found.assignment, found.centroids, found.distance, objective)
    run_folder.write_snapshot(folder, model, clustering)
    config = run_folder.read_config(folder) | {"bad_images": len(pixels.bad)}
    config["settings"]["method"]["k"] = clustering.k
    if choice is not None:
        config["k_auto"] = {**asdict(choice), "sentence": choice.sentence}
    run_folder.note_finished(folder, config)


@contextmanager
def _occupied(folder: Path, config: dict[str, Any], overwrite: bool, again: bool, screen: Screen) -> Iterator[None]:
    """Holds `folder` for the run that `config` describes, which perhaps goes on; features of the same network and
    images are kept. DeepClusterError if it holds a finished run, or one that trains, or another process writes in it.
    """
    config = parse_json(json.dumps(config))  # as it will be read

    def is_same(there: dict[str, Any]) -> bool:
        found_by_itself = {} if config["settings"]["method"]["k"] else {"k": 0}
        method = there["settings"]["method"] | found_by_itself
        there = there | {"settings": there["settings"] | {"method": method}}
        return all(there.get(name) == config[name] for name in ("preset", "settings", "source_fingerprint", "weights"))

    def goes_on() -> bool:
        there = run_folder.read_config(folder)
        return there["preset"] == PRESET and ("finished" not in there or (again and is_same(there)))

    def shared() -> list[str]:
        there = run_folder.read_config(folder)
        same = is_same(there)
        if not overwrite and not goes_on():
            raise DeepClusterError(
                f"{folder} already holds {'this' if same else 'another'} run: choose another --out, or replace it with"
                " --overwrite."
            )
        fits = all(there.get(name) == config[name] for name in ("preset", "source_fingerprint", "weights"))
        return [FEATURES, FITTED] * (fits and there["settings"].get("image_size") == config["settings"]["image_size"])

    with occupy_to_group(folder, goes_on=goes_on, judge=shared, warn=screen.warn):
        write_json(folder / "run.json", config)
        yield


def cluster_features(
    table: Any,
    algorithm: str,
    options: dict[str, Any],
    *,
    scratch: Path,
    seed: int = 0,
    start_near: bool = False,
    group: ProcessGroup = SINGLE,
    **how: Any,
) -> tuple[TableClusters, Any]:
    """What `cluster_table` gives for a feature table, and how k was chosen (`choose_k`), or None where it was given.
    `seed` is of all random draws, unless the options hold one; with `start_near` k-means is spherical and begins with
    means of neighbors, see `neighbor_start`; `how` are embedding and bad rows, as `cluster_table` takes them."""
    choice = None

    def clusterer(rows: np.ndarray) -> Any:
        nonlocal choice, options
        if needs_k(algorithm) and "k" not in options:
            if not group.is_single:
                raise DeepClusterError("Several processes must be told the number of clusters: give --k.")
            from deepcluster.clustering.choose_k import choose_k

            choice = choose_k(rows, random_state=options.get("seed", seed))
            options = options | {"k": choice.k}
        made = make_clusterer(algorithm, options, seed=seed, group=group)
        if algorithm == "hierarchical":
            made.set_params(scratch=scratch)
        if algorithm == "kmeans" and start_near and len(rows) >= made.n_clusters:
            start = neighbor_start(rows, made.n_clusters, random_state=options.get("seed", seed))
            made.set_params(init=start, spherical=True)
        return made

    return cluster_table(table, clusterer, scratch=scratch, group=group, **how), choice


def _tree(found: TableClusters) -> ClusterTree | None:
    """The level above the centroids of a hierarchical clustering, through which new images are assigned."""
    levels: Any = getattr(found.clusterer, "levels_", ())
    if len(levels) != 2:
        return None
    used = np.isin(np.arange(len(found.centroids)), found.assignment)
    return ClusterTree(torch.as_tensor(levels[0]).float(), torch.from_numpy(used))
