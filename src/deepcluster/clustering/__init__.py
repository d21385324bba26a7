"""Clustering of feature tables: whitening, k-means and the scores of a grouping."""

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.whitening import Whitening

__all__ = ["KMeans", "Whitening"]
