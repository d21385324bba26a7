"""What a run folder tells about its health, gathered once: plain numbers and arrays, nothing judged.

Whatever is missing or damaged is noted and left out, since a run that went wrong is the one that is looked at.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.clustering.metrics import nmi
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine import checkpoint
from deepcluster.engine.length import progress_of
from deepcluster.engine.log import Screen
from deepcluster.engine.model import MODEL
from deepcluster.engine.run import Run
from deepcluster.engine.subject import short_side
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.evaluate.doctor.view_agreement import Agreement, measure
from deepcluster.models.heads import STD

if TYPE_CHECKING:
    from deepcluster.engine.model import Model

SAMPLE = 512
"""Images whose views are looked at: a share of them is known to about .02."""
SAMPLE_LEAST = 100
"""With fewer, a view is easily told from all other images and shares are known to .05 at best."""


@dataclass(frozen=True)
class RunDiagnostics:
    """A run in numbers. None or empty: the run does not have it.

    Attributes:
        folder: the run folder, as the user wrote it.
        settings: of run.json, nested.
        images: N, undecodable ones included.
        bad: images that cannot be decoded.
        rows: metrics.jsonl.
        sizes: (K,) images in each cluster.
        nmi_chance: NMI of the clusters with the same clusters dealt out at random.
        twins: images with the same cluster and the same distance, to the last bit, as an earlier one.
        classes: classes that the images' labels name.
        directions: width that whitening gives; `directions_alive` of them hold any variance.
        features: width of the backbone's output; `features_dead` of them are constant over the images.
        outputs: of all classifiers; `outputs_unused` of them have no image.
        head_spread: deviation of the classifier's trained weights over that of freshly drawn ones.
        not_numbers: names of weights that hold NaN or infinity.
        agreement: of views and plain images.
        done: epochs behind the last checkpoint, a fraction within one.
        finished: whether the run has come to its end, by itself too.
        kept: checkpoints that are there, such as `checkpoints/last.ckpt`.
        missing: what could not be looked at, and why: sentences.
        damaged: files that cannot be read -> why.
    """

    folder: str
    settings: Mapping[str, Any]
    images: int
    bad: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    sizes: np.ndarray | None = None
    nmi_chance: float | None = None
    twins: int = 0
    classes: int | None = None
    directions: int | None = None
    directions_alive: int | None = None
    features: int | None = None
    features_dead: int | None = None
    outputs: int | None = None
    outputs_unused: int | None = None
    head_spread: float | None = None
    not_numbers: list[str] = field(default_factory=list)
    agreement: Agreement | None = None
    done: float | None = None
    finished: bool = False
    kept: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def good(self) -> int:
        """Images that can be decoded."""
        return self.images - self.bad

    @property
    def k(self) -> int | None:
        """Clusters, empty ones included."""
        return None if self.sizes is None else len(self.sizes)

    @property
    def choices(self) -> int:
        """Classes that the classifier guesses among: clusters, times turns where images are turned; 0 = unknown."""
        return (self.k or 0) * (4 if self.setting("method.rotations", False) else 1)

    @property
    def algorithm(self) -> str:
        """What groups the features: "kmeans", or one that finds the number of clusters itself."""
        return str(self.setting("method.algorithm", "kmeans"))

    @property
    def epochs(self) -> int | None:
        """Epochs asked for."""
        return self.settings.get("epochs")

    def series(self, name: str) -> list[float]:
        """One quantity over the epochs that have it as a number."""
        return [float(row[name]) for row in self.rows if finite(row.get(name))]

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting by its dotted name."""
        value: Any = self.settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def finite(value: Any) -> bool:
    """Whether a value of metrics.jsonl is a number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def collect(run: Run, data: Any = None, *, sample: int = SAMPLE, screen: Screen | None = None) -> RunDiagnostics:
    """Everything that the checks ask for, of a finished, stopped or broken run.

    Args:
        data: the training images where they are now; None = where they were.
        sample: at most so many images are looked at in views; 0 = none.

    Raises:
        DeepClusterError: `data` is given and cannot be opened, or does not hold as many images.
    """
    found: dict[str, Any] = {"missing": [], "damaged": {}, "not_numbers": []}
    found["rows"] = _rows(run, found)
    model = _model(run, found)
    _clusters(run, model, found)
    if model is not None:
        _weights(model, found)
    _head(run, found)
    source = _source(run, data, found)
    if source is not None and source.labels is not None and (source.labels >= 0).any():
        found["classes"] = len(np.unique(source.labels[source.labels >= 0]))
    if found["not_numbers"]:
        found["missing"].append("Views were not looked at: weights that are no numbers put images nowhere.")
    elif source is not None and model is not None and sample:
        found["agreement"] = _agreement(run, model, source, sample, screen or Screen(quiet=True), found["missing"])
    config = run.config
    found["kept"] = [f"checkpoints/{file.name}" for file in sorted((run.folder / "checkpoints").glob("*.ckpt"))]
    found["finished"] = _finished(config, found.get("done"), len(found["rows"]))
    return RunDiagnostics(
        folder=str(run.folder),
        settings=config.get("settings", {}),
        images=int(config.get("images", 0)),
        bad=_bad(run.folder, int(config.get("bad_images", 0))),
        **found,
    )


def _finished(config: Mapping[str, Any], done: float | None, rows: int) -> bool:
    """Whether run.json says so, and the checkpoint, or without one the curves, do not say otherwise."""
    settings = config.get("settings", {})
    if not config.get("finished"):
        return False
    return bool(settings.get("stop")) or (rows if done is None else done) >= settings.get("epochs", 0)


def _rows(run: Run, found: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return run.metrics
    except (OSError, DeepClusterError) as error:
        found["damaged"]["metrics.jsonl"] = _short(error)
        return []


def _model(run: Run, found: dict[str, Any]) -> Model | None:
    if not (run.folder / MODEL).exists():
        found["missing"].append(f"There is no {MODEL}, so its weights and clusters were not looked at.")
        return None
    try:
        return run.model
    except (DeepClusterError, RuntimeError, ValueError, TypeError) as error:
        found["damaged"][MODEL] = _short(error)
        return None


def _clusters(run: Run, model: Model | None, found: dict[str, Any]) -> None:
    if not (run.folder / "assignment.npy").exists():
        found["missing"].append("There is no assignment.npy, so cluster sizes were not looked at.")
        return
    try:
        assignment = run.assignment
    except DeepClusterError as error:
        found["damaged"]["assignment.npy"] = _short(error)
        return
    try:
        distance = run.distance
    except DeepClusterError as error:
        found["damaged"]["distance.npy"], distance = _short(error), None
    known = assignment[assignment >= 0]
    found["sizes"] = np.bincount(known, minlength=0 if model is None else len(model.centroids))
    found["nmi_chance"] = nmi(known, np.random.default_rng(0).permutation(known)) if len(known) else None
    if distance is not None and len(distance) == len(assignment):
        pairs = np.stack([known, distance[assignment >= 0].astype(np.float32).view(np.int32)], 1)
        found["twins"] = len(pairs) - len(np.unique(pairs, axis=0))


def _weights(model: Model, found: dict[str, Any]) -> None:
    """Whether the model holds numbers, and how many of its features and directions vary over the images."""
    tensors = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    name, between = model.between
    tensors |= {f"{name}.{part}": value for part, value in between.state_dict().items()}
    tensors["centroids"] = model.centroids
    found["not_numbers"] += [name for name, value in tensors.items() if not value.isfinite().all()]
    if model.whitening is None:  # online methods whiten nothing
        return
    size = model.whitening.components.abs()
    # A feature that never varies has no part in any direction, but for the rounding of the eigenvectors.
    found["features"], found["features_dead"] = size.shape[1], int((size.amax(0) <= 1e-6 * size.max()).sum())
    found["directions"], found["directions_alive"] = size.shape[0], int((size.amax(1) > 0).sum())


def _head(run: Run, found: dict[str, Any]) -> None:
    """The classifiers of the last checkpoint, and the clusters that they were trained on."""
    file = run.folder / "checkpoints" / "last.ckpt"
    if not file.exists():
        found["missing"].append("There is no checkpoints/last.ckpt, so the classifier was not looked at.")
        return
    try:
        state = checkpoint.load(file)
    except DeepClusterError as error:
        found["damaged"]["checkpoints/last.ckpt"] = _short(error)
        return
    method, progress = state["method"], state["progress"]
    found["done"] = progress_of(state)
    found["not_numbers"] += [
        name
        for name, value in method.items()
        if hasattr(value, "isfinite") and value.is_floating_point() and not value.isfinite().all()
    ]
    assignments = method.get("assignments")
    heads = [
        value
        for name, value in method.items()
        if name.startswith("heads.") and name.endswith(("linear.weight", "directions"))
    ]
    if assignments is None or not heads or not (assignments >= 0).any():
        return
    used = sum(len(row[row >= 0].unique()) for row in assignments)
    found["outputs"] = sum(len(head) for head in heads)
    found["outputs_unused"] = max(0, found["outputs"] - used)
    drawn = [value for name, value in method.items() if name.startswith("heads.") and name.endswith("linear.weight")]
    if drawn and progress.get("step", 0) > progress.get("refreshed", -1) >= 0:
        spread = float(drawn[0].float().std()) / STD
        found["head_spread"] = spread if math.isfinite(spread) else None


def _source(run: Run, data: Any, found: dict[str, Any]) -> ImageSource | None:
    if data is not None:
        source = open_images(data)
        if len(source) != run.config["images"]:
            raise DeepClusterError(
                f"{source.name} holds {len(source):,} images and {run.folder} was trained on"
                f" {run.config['images']:,}: give the training images as --data, or leave it out."
            )
        return _same(run, source, found)
    try:
        return _same(run, run.source(), found)
    except (DeepClusterError, OSError, ImportError, KeyError, ValueError) as error:
        found["missing"].append(
            f"Labels and views were not looked at (--data S says where the images are): {_short(error)}"
        )
        return None


def _same(run: Run, source: ImageSource, found: dict[str, Any]) -> ImageSource:
    """The source; where it is not the training images to the bit, that is noted. Copies have other dates, so it is
    looked at all the same."""
    if source.fingerprint() != run.config["source_fingerprint"]:
        found["missing"].append(
            f"{source.name} is not what the run was trained on (files were changed, or copied with new dates): what is"
            " said of labels and views is about what is there now."
        )
    return source


def _agreement(
    run: Run, model: Model, source: ImageSource, sample: int, screen: Screen, missing: list[str]
) -> Agreement | None:
    from deepcluster import config as settings
    from deepcluster.engine.build import untrained, views_of

    try:
        views = views_of(settings.from_dict(run.config["settings"]), model.backbone).groups[0]
        drawn = untrained(run.config)
        pictures = _pictures(source, model.backbone.image_size, sample)
    except (DeepClusterError, KeyError, OSError) as error:
        missing.append(f"Views were not looked at: {_short(error)}")
        return None
    if len(pictures) < SAMPLE_LEAST:
        missing.append(f"Views were not looked at: that takes {SAMPLE_LEAST} images, and there are {len(pictures)}.")
        return None
    with screen.bar("views", len(pictures)) as advance:
        return measure(model, drawn, pictures, views, device=run.device, check=advance)


def _pictures(source: ImageSource, image_size: int, count: int) -> list[np.ndarray]:
    """Up to `count` images spread at random over the source, those that can be decoded."""
    order = np.random.default_rng(0).permutation(len(source))[:count]
    pictures = []
    for index in np.sort(order):
        try:
            pictures.append(source.read(int(index), short_side(image_size)))
        except BadImage:
            continue
    return pictures


def _bad(folder: Path, told: int) -> int:
    """Rows of bad_images.csv, or what run.json says."""
    file = folder / "bad_images.csv"
    if not file.exists():
        return told
    with open(file, newline="", encoding="utf-8", errors="replace") as handle:
        return max(0, sum(len(row) >= 3 for row in csv.reader(handle)) - 1)


def _short(error: Exception) -> str:
    """The first line of an error's words, or of those that it was made of."""
    error = error.__cause__ if isinstance(error.__cause__, (ValueError, EOFError)) else error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
