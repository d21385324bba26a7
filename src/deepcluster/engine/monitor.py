"""What watches a run while it trains: statistics of its clusters, a score on labels, warnings, and the files that each
clustering leaves. It reads the network and changes nothing of the training.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.metrics import nmi, purity, rank_me, size_stats
from deepcluster.config import TrainRun
from deepcluster.data.source import ImageSource, known_labels
from deepcluster.engine import checkpoint
from deepcluster.engine.clock import duration
from deepcluster.engine.health import check_clusters, check_loss
from deepcluster.engine.log import Metrics, line
from deepcluster.engine.loop import TrainContext, TrainState, extract_all
from deepcluster.engine.model import MODEL, Model
from deepcluster.engine.run_folder import run_id, write_snapshot
from deepcluster.errors import DeepClusterError
from deepcluster.features.neighbors import score_features
from deepcluster.io import keep_copy
from deepcluster.methods.base import Features, Method
from deepcluster.random import seeded
from deepcluster.types import Clustering

MAX_SCORED = 5_000
"""Labelled training images that the kNN score is computed on, at most."""
MAX_RANKED = 1_024
"""Images that RankMe is computed on, at most."""
NEIGHBORS = 20
"""Neighbors that vote, as in `deepcluster evaluate RUN knn`."""
DRAW = 17
"""Purpose of the draw of these images; those of the loop are other numbers."""
CLUSTERING = ("nmi_previous", "reassigned", "clusters_used", "size_min", "size_max", "size_entropy")
"""What every row of metrics.jsonl tells of the latest clustering."""
NAMES = {"knn": "kNN score", "nmi": "NMI with the labels"}


@dataclass(frozen=True)
class Best:
    """The first epoch with the highest watched value."""

    epoch: int  # counted from 0
    value: float  # a fraction of 1
    since: int  # number of values after it


def best_of(rows: Iterable[Mapping[str, Any]], best: Best | None = None) -> Best | None:
    """The best of the rows of metrics.jsonl that have a `watched`, or the one before them; None when none has."""
    for row in rows:
        if (value := row.get("watched")) is not None:
            best = (
                Best(row["epoch"], value, 0)
                if best is None or value > best.value
                else replace(best, since=best.since + 1)
            )
    return best


def stalled(run: TrainRun, best: Best | None) -> bool:
    """Whether `--stop` ends the run: what it watches has not improved for `--patience` values."""
    return run.stop and best is not None and best.since >= run.patience


def stall_sentence(run: TrainRun, best: Best | None) -> str | None:
    """What to say after a watched epoch: once when the value has not improved for `--patience` values, and again only
    if it improved after that and stalled again."""
    if best is None or best.since != run.patience:
        return None
    return (
        f"the {NAMES[run.watch]} has not improved since epoch {best.epoch + 1} ({100 * best.value:.1f} %):"
        " checkpoints/best.ckpt holds that epoch"
    )


def watched_images(run: TrainRun, source: ImageSource) -> np.ndarray | None:
    """(M,) int64 positions, ascending, of the images that the watched score is computed on; empty for NMI, which the
    clusters of all images give, and None where nothing is watched. DeepClusterError where there are no labels to
    compare with, for numbers below 1, and for an end that nothing is watched for."""
    if run.watch_every < 1 or run.patience < 1:
        raise DeepClusterError(
            f"--watch-every {run.watch_every} and --patience {run.patience} must be at least 1: they count epochs and"
            " values."
        )
    if run.watch == "none":
        if run.stop:
            raise DeepClusterError("--stop needs a score to watch: add --watch knn or --watch nmi.")
        return None
    if (labels := known_labels(source)) is None:
        raise DeepClusterError(
            f"--watch {run.watch} compares with labels and {source.name} has none, or one class alone: give --data a"
            " source whose paths have class folders, or leave --watch out."
        )
    return np.zeros(0, np.int64) if run.watch == "nmi" else draw_labelled(labels, run.seed)


def draw_labelled(labels: np.ndarray, seed: int, at_most: int = MAX_SCORED) -> np.ndarray:
    """(M,) int64 ascending: up to `at_most` of the (N,) images that have a label, the same in every epoch."""
    known = np.flatnonzero(labels >= 0)
    order = torch.randperm(len(known), generator=seeded(seed, DRAW))[:at_most]
    return np.sort(known[order.numpy()])


def knn_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy of each image's class by the 20 nearest others (fewer where there are fewer), of (M, D) float32
    features and (M,) int64 labels, all known."""
    if len(features) < 2:
        raise DeepClusterError("The kNN score needs two labelled images that can be decoded: watch nmi, or nothing.")
    k = min(NEIGHBORS, len(features) - 1)
    scored = dict(score_features(features, labels, None, None, k=(k,), classes=int(labels.max()) + 1))
    return scored[f"knn{k}_top1"]


class Monitor:
    """Evaluates a run at each clustering and after each epoch. `watched` is what `watched_images` gives; the column of
    this name in the metrics, which receive one row an epoch, is all that is remembered of the score that is followed,
    so a run that was killed knows all it knew."""

    def __init__(self, metrics: Metrics, watched: np.ndarray | None) -> None:
        self.metrics, self.watched = metrics, watched
        self.best = best_of(metrics.earlier)
        self._written = -1  # the latest epoch whose first clustering was written

    def should_stop(self, run: TrainRun) -> bool:
        """Whether the watched score has stopped rising and the run is to end there."""
        return stalled(run, self.best)

    def after_features(self, c: TrainContext, state: TrainState, extracted: Features) -> None:
        """RankMe of the features of at most `MAX_RANKED` images, evenly from all; an epoch in which those of all were
        not extracted has none, unless the method keeps embeddings (`after_epoch`)."""
        count = sum(c.group.row_counts(len(extracted.index)))
        state.totals["rankme"] = _rank_me(c, torch.as_tensor(extracted.features), torch.arange(count))

    def after_clustering(self, c: TrainContext, state: TrainState, before: np.ndarray, clustering: Clustering) -> None:
        """Notes what the clusters look like and how they differ from those `before` (N,), and writes the model, so that
        an unfinished run can assign too."""
        now, labels, params = clustering.assignment, known_labels(c.pixels.source), c.run.method
        state.latest = {"k": clustering.k, **size_stats(now, clustering.k)}
        if (before >= 0).any():
            state.latest["nmi_previous"] = nmi(before, now)
            state.latest["reassigned"] = 1 - purity(now, before)
        if labels is not None:
            state.latest["nmi_labels"] = nmi(labels, now)
            state.latest["purity"] = purity(now, labels)
        if clustering.k > 1 or params.rotations_predicted == 1:  # rotations alone give classes to predict
            check_clusters(clustering.sizes, c.screen.warn)
        with c.group.collective_section():
            if not c.group.is_first:
                return
            best, epoch = self.best, state.step // state.steps_per_epoch
            if best is not None and state.step == (best.epoch + 1) * state.steps_per_epoch:
                exported_model(c.method, clustering).save(
                    c.folder / "checkpoints" / "best.safetensors", run_id(c.folder)
                )
            if epoch > self._written:
                self._written = epoch
                write_snapshot(c.folder, exported_model(c.method, clustering), clustering)

    def after_epoch(self, c: TrainContext, state: TrainState, epoch: int) -> None:
        """One line on the screen and in metrics.jsonl, and warnings. RankMe is of the embeddings that the method keeps,
        in every epoch, where it keeps them. DeepClusterError if the loss is not finite or no image could be decoded;
        Interrupted while features are extracted for the score."""
        totals, latest = state.totals, state.latest
        if not totals.get("images"):
            raise DeepClusterError(
                f"None of the images of epoch {epoch + 1} could be decoded: make sure that they can still be read, then"
                f" `deepcluster train --resume {c.folder}`."
            )
        watched = self._measured(c, state, epoch)
        loss, seconds = totals["loss"] / totals["images"], totals["seconds_train"]
        if not math.isfinite(loss):
            raise DeepClusterError(checkpoint.diverged(c.folder / "checkpoints" / checkpoint.LAST, state))
        if (kept := c.method.kept_embeddings) is not None:
            totals["rankme"] = _rank_me(c, kept, (c.method.last_assignment >= 0).nonzero().flatten().cpu())
        row: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss,
            **{name: latest.get(name) for name in CLUSTERING},
            "lr": c.optimizer.param_groups[0]["lr"],
            "images_per_second": totals["images"] / max(seconds, 1e-9),
            "seconds_train": seconds,
            **{name: totals.get(name, 0.0) for name in ("seconds_features", "seconds_cluster")},
            **{name: latest[name] for name in ("nmi_labels", "purity") if name in latest},
            **{name: totals[name] for name in ("rankme",) if name in totals},
            **c.method.epoch_stats(),
            **watched,
        }
        with c.group.collective_section():
            self.metrics.add(row)
        self.best = best_of([row], self.best)
        left, width = duration(c.clock.left(state.step)), c.screen.width if c.screen.is_terminal else sys.maxsize
        c.screen.print(line(row, c.run.epochs, left, width))
        classes = latest.get("k", 1) * c.run.method.rotations_predicted
        check_loss(self.metrics.losses, classes, c.screen.warn)
        state.totals = {}
        for name in ("nmi_previous", "reassigned"):  # an epoch without a clustering has none
            state.latest.pop(name, None)

    def _due(self, c: TrainContext, epoch: int) -> bool:
        """Whether a watched value is due after `epoch`, counted from 0."""
        return self.watched is not None and (epoch + 1) % c.run.watch_every == 0

    def _measured(self, c: TrainContext, state: TrainState, epoch: int) -> dict[str, Any]:
        """The watched score after `epoch` and the seconds it took; empty when it is not due."""
        if not self._due(c, epoch):
            return {}
        started = time.perf_counter()
        if c.run.watch == "nmi":
            value = state.latest.get("nmi_labels")
        else:
            with checkpoint.preserve_random_state():  # a third-party layer may draw random numbers
                extracted = extract_all(c, -1, self.watched)
            index, features = (c.group.gather_array(part) for part in (extracted.index, extracted.features))
            value = knn_score(features, np.asarray(c.pixels.source.labels, np.int64)[index])
        return {"watched": value, "seconds_watched": time.perf_counter() - started}

    def keep_best(self, c: TrainContext, state: TrainState) -> None:
        """Where the epoch that has just ended has the highest watched score: `best.ckpt` and, beside it,
        `best.safetensors` with the network as it is now and the clusters of model.safetensors, until the next
        clustering gives this network its own."""
        best = self.best
        if self.watched is None or best is None or state.step != (best.epoch + 1) * state.steps_per_epoch:
            return
        with c.group.collective_section():
            kept = c.folder / "checkpoints"
            if not c.group.is_first or not (kept / "last.ckpt").exists():
                return
            keep_copy(kept / "last.ckpt", kept / "best.ckpt")
            if (c.folder / MODEL).exists():
                with checkpoint.preserve_random_state():  # a network is initialized before its weights are read
                    model = Model.load(c.folder / MODEL)
                model.backbone = c.method.feature_network
                model.embedding = [
                    new if isinstance(new, torch.nn.Module) else old
                    for old, new in zip(model.embedding, c.method.embedding, strict=True)
                ]
                model.save(kept / "best.safetensors", run_id(c.folder))

    def report_stall(self, c: TrainContext, epoch: int) -> None:
        """Says once that the watched score has stopped rising."""
        if self._due(c, epoch) and (said := stall_sentence(c.run, self.best)):
            c.screen.print(said)


def _rank_me(c: TrainContext, rows: Tensor, known: Tensor) -> float:
    """RankMe of at most `MAX_RANKED` of the rows `known` (M,), evenly, of the (N, D) table that the `rows` of all
    processes form."""
    drawn = known[torch.arange(min(len(known), MAX_RANKED)) * len(known) // max(1, min(len(known), MAX_RANKED))]
    return rank_me(c.group.gather_rows(rows, drawn).cpu().numpy())


def exported_model(method: Method, clustering: Clustering) -> Model:
    """What features and assignments need, of the method as it stands."""
    return Model(method.feature_network, clustering.centroids, method.embedding, method.cluster_tree)
