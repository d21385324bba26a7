"""A finished or running run, read back from its folder: features and clusters of any images.

`model.safetensors` alone carries backbone, whitening and centroids, so new images are assigned without the
training data, the checkpoint or the preset.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.whitening import Whitening
from deepcluster.config import params_of
from deepcluster.data.open import must_exist, open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine import checkpoint
from deepcluster.engine.assignment import column
from deepcluster.engine.device import pick_device
from deepcluster.engine.log import read_metrics
from deepcluster.engine.model import CLUSTERS, MODEL, Model, backbone_from, bare_model, published_backbone
from deepcluster.engine.run_folder import read_config
from deepcluster.engine.subject import CACHE_GB, RESULTS, Subject
from deepcluster.errors import DeepClusterError
from deepcluster.methods.params import MethodParams, method_class
from deepcluster.models.backbone import Backbone
from deepcluster.models.hugging_face import HUB, fetch, is_folder
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import read_csv
from deepcluster.seal import seal_of


class Run(Subject):
    """A run folder. `run.metrics`, `run.assignment`, `run.backbone`, `run.assign("photos/")`.

    Args:
        folder: what `deepcluster train` wrote.
        device: where features are computed.
    """

    clustered = True

    def __init__(self, folder: Path | str, device: str = "auto") -> None:
        self.folder = Path(folder)
        self.name = str(folder)
        self.device = pick_device(device)
        self.config = read_config(self.folder)
        self.results = self.folder / "evaluation"
        self.clustered = self.params.finds_clusters
        data = self.config["settings"].get("data", {})
        self.cache_gb, self.workers = data.get("cache_gb", CACHE_GB), data.get("workers", 0)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, preset={self.config['preset']!r}, epochs={len(self.metrics)})"

    @property
    def params(self) -> MethodParams:
        """The parameters of the run's method."""
        return params_of(self.config)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per finished epoch."""
        return read_metrics(self.folder)

    @property
    def assignment(self) -> np.ndarray:
        """(N,) integers, the cluster of each training image; -1 = cannot be decoded."""
        file = self.folder / "assignment.npy"
        if not file.exists():
            raise DeepClusterError(
                f"{self.folder} has no clusters yet: go on with `deepcluster train --resume {self.folder}`."
            )
        found = self._column(file, "iu")
        most = max(len(found), getattr(self.params, "k", 0))
        if len(found) and not -1 <= found.min() <= found.max() < most:
            raise DeepClusterError(f"{file} cannot be read (it has clusters beyond {most:,}): {self._again}")
        return found

    @property
    def distance(self) -> np.ndarray | None:
        """(N,) float32, Euclidean distance of each training image to its center; NaN = cannot be decoded."""
        file = self.folder / "distance.npy"
        return self._column(file, "f") if file.exists() else None

    def _column(self, file: Path, kinds: str) -> np.ndarray:
        return column(file, kinds, self.config["images"], self.id, self._again)

    @property
    def mark(self) -> str:  # type: ignore[override]
        return seal_of(self.folder / MODEL)

    @property
    def id(self) -> str:
        """What the run's files say that they belong to; "" in one of an earlier version."""
        return str(self.config.get("id", ""))

    @property
    def _again(self) -> str:
        """How a file of the run that is not what it was is made again."""
        if not self.params.trains:
            return f"write it again by `deepcluster cluster {self.config.get('data')} --out {self.folder} --overwrite`."
        return f"write it again from the last checkpoint by `deepcluster train --resume {self.folder}`."

    def bad_images(self) -> list[tuple[str, str, str]]:
        """Index, path and reason of each image that cannot be decoded, as bad_images.csv lists them; DeepClusterError
        if that file is damaged."""
        file = self.folder / "bad_images.csv"
        rows = read_csv(file, advice="restore it, or delete it.")[1:] if file.exists() else []
        return [(row[0], row[1], row[2]) for row in rows if len(row) >= 3]

    @cached_property
    def model(self) -> Model:  # type: ignore[override]  # read when it is asked for
        """Backbone, embedding and centroids of the last clustering."""
        file = self.folder / MODEL
        if not file.exists():
            raise DeepClusterError(
                f"{self.folder} has no model yet: go on with `deepcluster train --resume {self.folder}`."
            )
        return Model.load(file, owner=self.id)

    @property
    def whitening(self) -> Whitening:
        """From features to the space of the centroids; DeepClusterError for a run whose method whitens nothing, for
        which `embed` serves, and for the run's network before it was trained."""
        whitening = self.model.whitening
        if whitening is None or (not self.clustered and self.params.finds_clusters):
            return super().whitening
        return whitening

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight (K, D) and bias (K,) of the (first) classifier over clusters in the last checkpoint, if it has one; of
        a cosine classifier its unit directions and zeros. It was trained on the clusters before the last ones, which
        `centroids` are of, together with the weights of that checkpoint."""
        file = self.folder / "checkpoints" / "last.ckpt"
        classifiers = self.saved_clusters(checkpoint.load(file))[1] if file.exists() else []
        if not classifiers:
            return None
        weight, bias = classifiers[0]
        return weight, torch.zeros(len(weight)) if bias is None else bias

    def saved_clusters(self, saved: dict[str, Any]) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """Assignments and classifiers in a checkpoint of the run; see `Method.saved_clusters`. None in that of another
        method."""
        with suppress(KeyError):
            assignments, classifiers = method_class(self.params).saved_clusters(saved["method"])
            return assignments, classifiers
        return torch.empty(0, 0, dtype=torch.int64), []

    def source(self) -> ImageSource:
        """The training images, opened again; DeepClusterError where they are not where they were."""
        data = self.config["data"]
        try:
            must_exist(data)
        except DeepClusterError:
            raise DeepClusterError(
                f"The images of {self.folder}, {data}, are not there any more: give --data."
            ) from None
        return open_images(data)

    def _drawn(self, seed: int) -> Backbone:
        from deepcluster.engine import build  # loads the training engine, which is half of the start

        return build.untrained(self.config)

    def save_pretrained(self, folder: Path | str) -> Path:
        """Writes what others need of the run to a new folder, which `from_pretrained` opens: its network, in timm's
        form too where timm has one like it, its clusters, and README.md, a model card with method, data, seconds and
        scores. Neither images nor their paths are in it.

        Raises:
            DeepClusterError: there are no clusters yet, or the folder holds something or cannot be written.
        """
        from deepcluster.engine.hub import write_hub_folder

        return write_hub_folder(self, Path(folder))

    def push_to_hub(
        self, repo: str, *, private: bool = False, token: str | None = None, message: str = "Run of deepcluster"
    ) -> str:
        """Puts that folder on the Hugging Face hub, as a commit to a repository that is made if there is none.

        Args:
            repo: such as "we/photos".
            private: whether a repository that is made is seen by its owner only.
            token: of the account; None = that of `hf auth login`.
            message: of the commit.

        Returns:
            The address of the repository.

        Raises:
            DeepClusterError: there are no clusters yet, or the hub cannot be reached or refuses.
        """
        from deepcluster.engine.hub import push

        return push(self, repo, private, token, message)


def load_run(folder: Path | str, device: str = "auto") -> Run:
    """Opens a run folder; DeepClusterError where it holds no run."""
    return Run(folder, device)


def load_subject(
    name: str | Path,
    *,
    device: str = "auto",
    image_size: int | None = None,
    untrained: bool = False,
    seed: int = 0,
    results: Path | None = None,
) -> Subject:
    """Opens a run folder, weights in a file or folder (`engine.model.backbone_from` lists them), what
    `Run.save_pretrained` wrote, or a backbone by name.

    Args:
        name: the folder, the file, or a name such as "timm:resnet50.a1_in1k" or "hf:we/photos", whose weights are
            fetched.
        device: auto, cpu, cuda, mps.
        image_size: for a backbone by name or a Hugging Face folder, side of the images it sees; None = what its
            weights were made for, or 224.
        untrained: the same network without what it learned.
        seed: that the untrained one is drawn with (a run's is drawn with the seed of the run).
        results: where evaluations are written; None = in the run folder, else beneath `RESULTS`.

    Raises:
        DeepClusterError: there is no such folder, file or backbone, or a size was given to what has its own.
    """
    path = fetch(str(name), [CLUSTERS]) if str(name).startswith(HUB) else Path(name)
    run, shared = (path / "run.json").is_file(), path / CLUSTERS
    if image_size is not None and (run or path.is_file() or shared.is_file()):
        raise DeepClusterError(f"{name} knows the size of its images: leave out --image-size.")
    if run:
        subject: Subject = load_run(path, device)
    else:
        folder = RESULTS / re.sub(r"[^\w.-]+", "-", str(name)).strip("-.")
        model = Model.load(shared) if shared.is_file() else _model(str(name), path, image_size, untrained)
        subject = Subject(str(name), model, pick_device(device), folder)
        subject.clustered = len(model.centroids) > 1
    if untrained:
        subject = subject.untrained(seed)
    if results is not None:
        subject.results = results
    return subject


def _model(name: str, path: Path, image_size: int | None, untrained: bool) -> Model:
    if path.is_file() or path.suffix in (".tar", ".pth", ".safetensors") or is_folder(path):
        return bare_model(backbone_from(path, image_size))
    if path.exists():
        raise DeepClusterError(
            f"{name} is no run folder (it has no run.json) and no Hugging Face folder (it has no config.json): give a"
            " run or a backbone's name."
        )
    size = image_size or _native_size(name)
    try:
        build = build_backbone if untrained else published_backbone
        return bare_model(build(name, image_size=size))
    except DeepClusterError as error:
        if ":" in name or not str(error).startswith("No backbone"):
            raise
        raise DeepClusterError(f"There is no run folder or file {name}, and n{str(error)[1:]}") from error


def _native_size(name: str) -> int:
    """Side in pixels that timm's weights of this name were trained for; 224 for all others."""
    if name.startswith("timm:"):
        import timm

        if timm.is_model(name[5:]):
            found = timm.get_pretrained_cfg(name[5:])
            return found.input_size[-1] if found is not None else 224
    return 224
