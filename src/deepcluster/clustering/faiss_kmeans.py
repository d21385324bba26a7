"""k-means by faiss, for comparison and for whoever prefers it; needs all rows in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.points import Points
from deepcluster.errors import DeepClusterError
from deepcluster.features.parallel import members


def faiss_lloyd(points: Points, centroids: Tensor, *, max_iter: int, seed: int) -> tuple[Tensor, list[float]]:
    """Like `kmeans.lloyd`, by `faiss.Kmeans` on the CPU, from the given centroids and without subsampling.

    Raises:
        DeepClusterError: faiss is not installed, or points have weights.
    """
    try:
        import faiss
    except ImportError as error:
        raise DeepClusterError("backend='faiss' needs faiss; install faiss-cpu or take backend='torch'.") from error
    if points.weight is not None:
        raise DeepClusterError("backend='faiss' takes no sample_weight; take backend='torch'.")
    x = np.empty((points.n, points.dim), np.float32)
    for start, block in points.blocks():  # whose memory the next block may take
        x[start : start + len(block)] = block.cpu().numpy()
    run = faiss.Kmeans(
        points.dim,
        len(centroids),
        niter=max_iter,
        seed=seed,
        spherical=points.spherical,
        max_points_per_centroid=max(points.n, 1),
        min_points_per_centroid=1,
    )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(members())
    try:
        run.train(x, init_centroids=centroids.cpu().numpy())
    finally:
        faiss.omp_set_num_threads(threads)
    found = torch.from_numpy(np.asarray(run.centroids, np.float32).reshape(len(centroids), points.dim))
    return found.to(points.device), [] if run.obj is None else run.obj.tolist()
