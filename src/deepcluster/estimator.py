"""`ImageClusterer`: groups of images in scikit-learn's grammar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin

from deepcluster.api import cluster, train
from deepcluster.clustering.assign import EXACT
from deepcluster.clustering.validation import require_fitted, seed_from
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine.device import pick_device
from deepcluster.engine.run import Run
from deepcluster.engine.subject import RESULTS, Subject
from deepcluster.errors import DeepClusterError
from deepcluster.presets import PRESETS

DECIDED = {"epochs", "minutes", "image_size", "seed", "device", "method", "from_", "overwrite", "resume", "quiet"}
"""What `settings` may not hold."""


class ImageClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Groups images by the features of a network: a pretrained one as it is, or one that is trained on them first.

    Images (X, everywhere) are an array (N, H, W[, C]) uint8, a list of arrays or of paths, a column of paths of a data
    frame, or anything else that `open_images` takes, such as a folder. Images that cannot be decoded belong to no
    cluster.

    Args:
        n_clusters: K; "auto" = chosen from the features.
        method: None = the network is not trained; else what trains it first: "deepcluster", "odc", "deepcluster_v2",
            "swav", "deepercluster", or a preset's name.
        backbone: a backbone by name, "auto", a file of weights, or a run folder; training goes on from it. None =
            "auto", the pretrained network at hand, without a method, and random weights with one.
        algorithm: "kmeans", "hierarchical", "temi" or "pic", which groups the features.
        epochs: of training; None = what fits into the minutes.
        minutes: that training may take; None = 10, unless `epochs` are given or the preset has its own.
        image_size: side in pixels of the images that the network sees; None = chosen from theirs.
        settings: of training by their names, such as {"method__k": 300, "batch_size": 64}.
        random_state: int, `numpy.random.RandomState`, or None = NumPy's global one.
        device: "auto", "cpu", "cuda" or "mps".
        out: folder that the run is kept in, for `explore` and the command line; None = it is not kept.
        verbose: tell what is done, with progress bars.

    Attributes:
        labels_: (N,) int64, the cluster of each image; -1 = it cannot be decoded.
        cluster_centers_: (K, P) float32 in the space of `embed`.
        n_clusters_: K.
        n_features_in_: D, width of the network's features, which are clustered.
        model_: network, embedding and centers.

    Examples:
        >>> from deepcluster import ImageClusterer
        >>> ImageClusterer(n_clusters=10, random_state=0).fit_predict("photos/")  # doctest: +SKIP
        array([3, 3, 7, ..., 0])
    """

    def __init__(
        self,
        n_clusters: int | str = "auto",
        *,
        method: str | None = None,
        backbone: str | None = None,
        algorithm: str = "kmeans",
        epochs: float | None = None,
        minutes: float | None = None,
        image_size: int | None = None,
        settings: dict[str, Any] | None = None,
        random_state: Any = None,
        device: str = "auto",
        out: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.method = method
        self.backbone = backbone
        self.algorithm = algorithm
        self.epochs = epochs
        self.minutes = minutes
        self.image_size = image_size
        self.settings = settings
        self.random_state = random_state
        self.device = device
        self.out = out
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Any, y: None = None) -> ImageClusterer:
        """Groups the images X.

        Raises:
            DeepClusterError: no images, fewer than clusters, or an argument of the wrong kind, in one sentence.
        """
        if not (self.n_clusters == "auto" or (isinstance(self.n_clusters, (int, np.integer)) and self.n_clusters > 0)):
            raise DeepClusterError(f'n_clusters must be "auto" or an integer of at least 1, not {self.n_clusters!r}.')
        given = [name for name in ("epochs", "minutes", "settings") if getattr(self, name) is not None]
        if self.method is None and given:
            raise DeepClusterError(f"{given[0]} is of training: give a method, such as method='deepcluster'.")
        if twice := sorted(DECIDED & set(self.settings or {})):
            raise DeepClusterError(f"settings hold {twice[0]!r}, which ImageClusterer decides itself: leave it out.")
        source, seed = open_images(X), seed_from(self.random_state)
        with ExitStack() as stack:
            folder = Path(self.out or stack.enter_context(TemporaryDirectory(prefix="deepcluster-")) + "/run")
            common: dict[str, Any] = {"seed": seed, "device": self.device, "quiet": not self.verbose}
            common["overwrite"] = self.out is not None and getattr(self, "_written", None) == folder
            backbone = self.backbone or "auto"
            if self.method is not None:
                backbone = str(self._train(source, folder.with_name(f"{folder.name}-network"), **common).folder)
                self._written = folder
            run = cluster(
                source,
                folder,
                k=None if self.n_clusters == "auto" else self.n_clusters,
                backbone=backbone,
                algorithm=self.algorithm,
                image_size=self.image_size if self.method is None else None,
                **common,
            )
            self.labels_, self.model_, self._written = np.array(run.assignment), run.model, folder
        self.cluster_centers_ = self.model_.centroids.numpy()
        self.n_clusters_, self.n_features_in_ = len(self.cluster_centers_), self.model_.backbone.dim
        return self

    def _train(self, source: ImageSource, folder: Path, **common: Any) -> Run:
        """A run of the method, or of the preset of its name."""
        values = dict(self.settings or {})
        for name in ("epochs", "minutes", "image_size"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        if self.method in PRESETS:
            return train(self.method, source, folder, from_=self.backbone, **common, **values)
        return train(None, source, folder, from_=self.backbone, **common, **values, method=self.method)

    def predict(self, X: Any) -> np.ndarray:
        """(N,) int64, the cluster of each of the images X; -1 = it cannot be decoded."""
        with self._shown() as network:
            return network.nearest(X)[0]

    def score(self, X: Any, y: None = None) -> float:
        """Minus the sum of squared distances of the images X to the centers of their clusters."""
        with self._shown() as network:
            return -float(np.nansum(network.nearest(X)[1].astype(np.float64) ** 2))

    def embed(self, X: Any) -> np.ndarray:
        """(N, P) float32 features of the images X in the space of `cluster_centers_`; NaN = not decoded."""
        with self._shown() as network:
            return self.model_.embed(network.features(X))

    def transform(self, X: Any) -> np.ndarray:
        """(N, K) float32 distances of the images X to the centers of the clusters, as KMeans gives them."""
        embedded = torch.from_numpy(self.embed(X))
        return torch.cdist(embedded, torch.from_numpy(self.cluster_centers_), compute_mode=EXACT).numpy()

    def explore(self, data: Any = None, port: int = 0, *, open: bool = True) -> None:
        """Serves the page of `deepcluster explore` on the run in `out`, until it is interrupted.

        Args:
            data: the images, where they have moved.
            port: on 127.0.0.1; 0 = any free one.
            open: open the page in a browser.

        Raises:
            DeepClusterError: no run was kept.
        """
        from deepcluster.cli.explore import explore

        require_fitted(self)
        if self.out is None:
            raise DeepClusterError("No run was kept to explore: give ImageClusterer a folder, out='runs/photos'.")
        explore(Path(self.out), data=data, port=port, open=open, device=self.device)

    @contextmanager
    def _shown(self) -> Iterator[Subject]:
        """The network on its device; afterwards it can be unpickled where there is no other than the CPU."""
        require_fitted(self)
        yield Subject("ImageClusterer", self.model_, pick_device(self.device), RESULTS)
        self.model_.backbone.cpu()

    @property
    def _n_features_out(self) -> int:
        return self.n_clusters_
