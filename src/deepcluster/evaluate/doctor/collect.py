"""Measures everything the doctor's checks need from a run folder, once, and judges nothing.

A file that is missing or damaged is noted and skipped, because runs that went wrong are the ones people examine.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from deepcluster import config
from deepcluster.clustering.metrics import nmi
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine import checkpoint
from deepcluster.engine.length import progress_of
from deepcluster.engine.log import Screen
from deepcluster.engine.model import MODEL, Model
from deepcluster.engine.run import Run
from deepcluster.engine.subject import short_side
from deepcluster.errors import BadImage, DeepClusterError, counted
from deepcluster.evaluate.doctor.views import ViewAgreement, measure
from deepcluster.models.backbone import Backbone
from deepcluster.models.heads import STD

T = TypeVar("T")

LAST = "checkpoints/last.ckpt"
SAMPLE = 512
"""Images whose augmented views are examined: shares are then known to about .02."""
MIN_SAMPLE = 100
"""With fewer images a view is easily told from all others, and shares are known to .05 at best."""


@dataclass
class RunDiagnostics:
    """A run in numbers. None, 0 or empty: the run does not have it."""

    folder: str  # the run folder, as the user wrote it
    settings: Mapping[str, Any]  # of run.json, nested
    images: int  # N, undecodable ones included
    bad: int = 0  # images that cannot be decoded
    rotations: int = 1  # rotations of an image that are predicted together with its cluster; 1 = none
    finds_clusters: bool = True  # false for runs that predict rotations only (RotNet)
    trains: bool = True  # false where images were grouped by the features of a network as it was
    k_auto: str = ""  # how the number of clusters was chosen, in a sentence; empty where it was given
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics.jsonl
    sizes: np.ndarray | None = None  # (K,) images in each cluster
    chance_nmi: float | None = None  # NMI of the clusters with a random permutation of themselves
    duplicates: int = 0  # images with exactly the cluster and distance of an earlier one
    classes: int | None = None  # classes among the images' labels
    directions: int = 0  # width after whitening; `directions_alive` of them have any variance
    directions_alive: int = 0
    features: int = 0  # width of the backbone's output; `features_dead` of them are constant over the images
    features_dead: int = 0
    outputs: int = 0  # of all classifiers; `outputs_unused` of them have no image
    outputs_unused: int = 0
    # standard deviation of the classifier's weights over that of freshly initialized ones
    head_spread: float | None = None
    # norm of (trained - initial backbone weights) over the norm of the initial ones
    backbone_change: float | None = None
    not_finite: list[str] = field(default_factory=list)  # names of weights that hold NaN or infinity
    agreement: ViewAgreement | None = None  # of augmented views and plain images
    epochs_done: float | None = None  # at the last checkpoint, with a fraction within an epoch
    finished: bool = False  # whether the run has come to its end, early stopping included
    checkpoints: list[str] = field(default_factory=list)  # files in checkpoints/, such as `checkpoints/last.ckpt`
    missing: list[str] = field(default_factory=list)  # what could not be examined, and why, in sentences
    damaged: dict[str, str] = field(default_factory=dict)  # files that cannot be read -> why

    @property
    def decodable(self) -> int:
        """Images that can be decoded."""
        return self.images - self.bad

    @property
    def k(self) -> int:
        """Clusters, empty ones included; 0 = unknown."""
        return 0 if self.sizes is None else len(self.sizes)

    @property
    def num_pseudo_classes(self) -> int:
        """Classes that the classifier predicts: clusters, times rotations where images are rotated; 0 = unknown."""
        return self.k * self.rotations

    @property
    def algorithm(self) -> str:
        """What clusters the features: "kmeans", or an algorithm that finds the number of clusters itself."""
        return str(self.setting("method.algorithm", "kmeans"))

    @property
    def epochs(self) -> int:
        """Epochs of the schedule; 0 = unknown."""
        return int(self.settings.get("epochs", 0))

    def series(self, name: str) -> list[float]:
        """One column of metrics.jsonl over the epochs that have it as a number."""
        return [float(row[name]) for row in self.rows if is_finite(row.get(name))]

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting by its dotted name."""
        value: Any = self.settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def is_finite(value: Any) -> bool:
    """Whether a value of metrics.jsonl is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def collect(run: Run, data: Any = None, *, sample: int = SAMPLE, screen: Screen | None = None) -> RunDiagnostics:
    """Measures a finished, stopped or broken run; arguments and errors are those of `diagnose`."""
    found = RunDiagnostics(str(run.folder), run.config["settings"], run.config["images"], _bad_images(run))
    with contextlib.suppress(DeepClusterError):  # settings of another version
        params = config.from_dict(run.config["settings"]).method
        found.rotations, found.finds_clusters = params.rotations_predicted, params.finds_clusters
        found.trains, found.k_auto = params.trains, run.config.get("k_auto", {}).get("sentence", "")
    found.checkpoints = [f"checkpoints/{file.name}" for file in sorted((run.folder / "checkpoints").glob("*.ckpt"))]

    def read(name: str, get: Callable[[], T], skipped: str = "") -> T | None:
        """What `get` makes of the file `name` of the run; None, with a note, where it is missing or damaged."""
        if not (run.folder / name).exists():
            if skipped:
                found.missing.append(f"There is no {name}, so {skipped} not examined.")
            return None
        try:
            return get()
        except (DeepClusterError, OSError, RuntimeError, ValueError, TypeError) as error:
            found.damaged[name] = _first_line(error)
            return None

    found.rows = read("metrics.jsonl", lambda: run.metrics) or []
    file = run.folder / MODEL  # values that are not finite are a finding, and no reason not to look further
    model = read(MODEL, lambda: Model.load(file, finite=False, owner=run.id), "its weights and clusters were")
    assignment = read("assignment.npy", lambda: run.assignment, "cluster sizes were")
    if assignment is not None:
        distance = read("distance.npy", lambda: run.distance)
        _measure_clusters(found, assignment, distance, 0 if model is None else len(model.centroids))
    if model is not None:
        _measure_features(found, model)
    state = None
    if found.trains:
        state = read(LAST, lambda: checkpoint.load(run.folder / LAST), "the classifier was")
    initial = _initial_backbone(run, found) if found.trains and (model or state) else None
    if state is not None:
        found.epochs_done = progress_of(state)
        _measure_checkpoint(run, found, state, initial)
    done = len(found.rows) if found.epochs_done is None else found.epochs_done
    # a checkpoint, or without one the curves, may contradict run.json
    found.finished = bool(run.config.get("finished")) and (found.setting("stop", False) or done >= found.epochs)
    source = _open_source(run, data, found)
    if source is not None and source.labels is not None and (source.labels >= 0).any():
        found.classes = len(np.unique(source.labels[source.labels >= 0]))
    if found.not_finite:
        found.missing.append("Views were not examined: some weights are not finite.")
    elif source is not None and model is not None and initial is not None and sample:
        found.agreement = _measure_views(run, found, model, initial, source, sample, screen or Screen(quiet=True))
    return found


def _measure_clusters(found: RunDiagnostics, assignment: np.ndarray, distance: np.ndarray | None, k: int) -> None:
    """Sizes of K clusters, or more where the assignment has more, what chance would agree on, and copies."""
    decoded = assignment >= 0
    clusters = assignment[decoded]
    found.sizes = np.bincount(clusters, minlength=k)
    if len(clusters):
        found.chance_nmi = nmi(clusters, np.random.default_rng(0).permutation(clusters))
    if distance is not None and len(distance) == len(assignment):
        pairs = np.stack([clusters, distance[decoded].astype(np.float32).view(np.int32)], 1)
        found.duplicates = len(pairs) - len(np.unique(pairs, axis=0))


def _measure_features(found: RunDiagnostics, model: Model) -> None:
    """Whether the model's weights are finite, and how many of its features and directions vary over the images."""
    tensors = {f"backbone.{part}": value for part, value in model.backbone.state_dict().items()}
    for number, step in enumerate(model.embedding):
        tensors |= {f"embedding.{number}.{part}": value for part, value in step.state_dict().items()}
    found.not_finite += _not_finite(tensors | {"centroids": model.centroids})
    if model.whitening is None:  # online methods do not whiten
        return
    size = model.whitening.components_.abs()
    # A constant feature has no weight in any direction, except for the rounding of the eigenvectors.
    found.features, found.features_dead = size.shape[1], int((size.amax(0) <= 1e-6 * size.max()).sum())
    found.directions, found.directions_alive = size.shape[0], int((size.amax(1) > 0).sum())


def _measure_checkpoint(run: Run, found: RunDiagnostics, state: dict[str, Any], initial: Backbone | None) -> None:
    """The classifiers of the last checkpoint, the clusters they were trained on, and how far the backbone moved."""
    method, progress = state["method"], state["progress"]
    found.not_finite += _not_finite(method)
    step = progress.get("step", 0)
    if initial is not None and step > 0:
        found.backbone_change = _relative_change(method, initial)
    assignments, classifiers = run.saved_clusters(state)
    if not classifiers or not (assignments >= 0).any():
        return
    used = sum(len(row[row >= 0].unique()) for row in assignments)
    found.outputs = sum(len(weight) for weight, _ in classifiers)
    found.outputs_unused = max(0, found.outputs - used)
    weight, bias = classifiers[0]
    if bias is not None and step > progress.get("refreshed", -1) >= 0:
        spread = float(weight.float().std()) / STD
        found.head_spread = spread if math.isfinite(spread) else None


def _not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity."""
    floats = {name: x for name, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return [name for name, x in floats.items() if not x.isfinite().all()]


def _relative_change(trained: Mapping[str, Tensor], initial: Backbone) -> float | None:
    """||w - w0|| / ||w0|| over the trainable weights of the backbone; buffers such as running means do not count."""
    weights = {f"backbone.{name}": w0.detach().double() for name, w0 in initial.named_parameters() if w0.requires_grad}
    if any(name not in trained or trained[name].shape != w0.shape for name, w0 in weights.items()):
        return None
    change = sum(float((trained[name] - w0).square().sum()) for name, w0 in weights.items())
    norm = sum(float(w0.square().sum()) for w0 in weights.values())
    return math.sqrt(change / norm) if norm and math.isfinite(change) else None


def _initial_backbone(run: Run, found: RunDiagnostics) -> Backbone | None:
    """The backbone as it was before the first step."""
    from deepcluster.engine.build import untrained  # loads the training engine

    try:
        with checkpoint.preserve_random_state():
            return untrained(run.config)
    except (DeepClusterError, KeyError, OSError) as error:
        found.missing.append(f"Views and the change of the weights were not examined: {_first_line(error)}")
        return None


def _open_source(run: Run, data: Any, found: RunDiagnostics) -> ImageSource | None:
    """The training images. Where they are not those of the run to the bit, that is noted; copied files have other
    dates, so they are used all the same."""
    try:
        source = run.source() if data is None else open_images(data)
    except (DeepClusterError, OSError, ImportError, KeyError, ValueError) as error:
        if data is not None:
            raise
        said = "Labels and views were not examined (--data S says where the images are)"
        found.missing.append(f"{said}: {_first_line(error)}")
        return None
    if data is not None and len(source) != found.images:
        raise DeepClusterError(
            f"{source.name} holds {counted(len(source), 'image')} and {run.folder} was trained on {found.images:,}:"
            " give the training images as --data, or leave it out."
        )
    if source.fingerprint() != run.config["source_fingerprint"]:
        found.missing.append(
            f"{source.name} is not what the run was trained on (files were changed, or copied with new dates): findings"
            " about labels and views are about what is there now."
        )
    return source


def _measure_views(
    run: Run, found: RunDiagnostics, model: Model, initial: Backbone, source: ImageSource, sample: int, screen: Screen
) -> ViewAgreement | None:
    from deepcluster.engine.build import views_of

    pictures = []
    for index in np.sort(np.random.default_rng(0).permutation(len(source))[:sample]):
        try:
            pictures.append(source.read(int(index), short_side(model.backbone.image_size)))
        except BadImage:
            continue
    if len(pictures) < MIN_SAMPLE:
        found.missing.append(f"Views were not examined: that takes {MIN_SAMPLE} images, and there are {len(pictures)}.")
        return None
    views = views_of(config.from_dict(run.config["settings"]), model.backbone).groups[0]
    with screen.bar("views", len(pictures)) as advance:
        return measure(model, initial, pictures, views, device=run.device, check=advance)


def _bad_images(run: Run) -> int:
    """Rows of bad_images.csv, or what run.json says."""
    with contextlib.suppress(DeepClusterError):
        if (run.folder / "bad_images.csv").exists():
            return len(run.bad_images())
    return int(run.config.get("bad_images", 0))


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or of its cause's."""
    error = error.__cause__ if isinstance(error.__cause__, (ValueError, EOFError)) else error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
