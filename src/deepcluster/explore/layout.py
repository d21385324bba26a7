"""Positions of images on the map: two numbers for each, as int16.

`axes` are the first two principal components. `neighborhoods` lays out some thousand landmarks by t-SNE (van der Maaten
and Hinton 2008) and puts every other image between its most similar landmarks, which takes any number of images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deepcluster.explore.vectors import BLOCK, Vectors

LANDMARKS = 2500
SEED = 0
STEPS = 500
"""Half of scikit-learn's usual ones keep as many neighbors, in half the time."""
NEAREST = 4
"""Landmarks that an image lies between."""
SAMPLE = 100_000
"""Images from which the main directions are computed."""
ALIKE = 1e-5
"""Vectors that differ less are of images that are all the same."""
EDGE = 32000
"""The farthest coordinate from the middle."""

Tell = Callable[[int, int], None]


def axes(vectors: Vectors, tell: Tell = lambda done, total: None) -> np.ndarray:
    """(N, 2) int16, the coordinates along the first two principal directions; bad images in the middle."""
    sample = vectors.rows[_some(vectors.good, SAMPLE)].astype(np.float64)
    if len(sample) < 2 or np.ptp(sample, axis=0).max() < ALIKE:
        return np.zeros((len(vectors), 2), np.int16)
    from sklearn.decomposition import PCA

    pca = PCA(min(2, sample.shape[1]), svd_solver="covariance_eigh").fit(sample)
    position = np.zeros((len(vectors), 2), np.float32)
    for start in range(0, len(vectors), BLOCK):
        part = slice(start, start + BLOCK)
        position[part, : pca.n_components_] = pca.transform(vectors.rows[part])
        tell(start, len(vectors))
    return _scaled(position, vectors)


def neighborhoods(vectors: Vectors, tell: Tell = lambda done, total: None, landmarks: int = LANDMARKS) -> np.ndarray:
    """(N, 2) int16 by t-SNE of `landmarks` images; all others lie between those they are most similar to."""
    chosen = _some(vectors.good, landmarks)
    bank = np.asarray(vectors.rows[chosen])
    if len(chosen) < 5 or np.ptp(bank, axis=0).max() < ALIKE:  # t-SNE's start would be 0 / 0
        return axes(vectors, tell)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(chosen) - 1) / 4)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=SEED, n_jobs=1, max_iter=STEPS)
    fixed = tsne.fit_transform(bank.astype(np.float64)).astype(np.float32)
    position = np.zeros((len(vectors), 2), np.float32)
    generator = np.random.default_rng(SEED)
    spread = 0.004 * float(np.ptp(fixed))
    step = 8192
    for start in range(0, len(vectors), step):
        similarity = vectors.rows[start : start + step] @ bank.T
        best = np.argpartition(-similarity, NEAREST - 1, axis=1)[:, :NEAREST]
        score = np.take_along_axis(similarity, best, 1)
        weight = np.exp(20 * (score - score.max(1, keepdims=True)))
        weight /= weight.sum(1, keepdims=True)
        found = (weight[..., None] * fixed[best]).sum(1)
        # so that images between the same landmarks do not hide each other
        position[start : start + step] = found + generator.normal(scale=spread, size=found.shape)
        tell(start, len(vectors))
    position[chosen] = fixed
    return _scaled(position, vectors)


LAYOUTS = {"neighborhoods": neighborhoods, "axes": axes}


def _some(index: np.ndarray, count: int) -> np.ndarray:
    """`count` of the indices, drawn once and for all, ascending."""
    if len(index) <= count:
        return index
    return np.sort(np.random.default_rng(SEED).choice(index, count, replace=False))


def _scaled(position: np.ndarray, vectors: Vectors) -> np.ndarray:
    """Positions as int16 about the middle, one scale for both axes."""
    good = vectors.good
    if len(good):
        low, high = position[good].min(0), position[good].max(0)
        position = (position - (low + high) / 2) * (EDGE / max(float((high - low).max()) / 2, ALIKE))
    position[vectors.bad] = 0
    result: np.ndarray = np.rint(np.clip(position, -EDGE, EDGE)).astype("<i2")
    return result
