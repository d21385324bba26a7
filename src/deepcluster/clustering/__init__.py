"""Clustering of feature tables: whitening, k-means, power iteration clustering and the scores of a grouping."""

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.pic import PIC
from deepcluster.clustering.whitening import Whitening

__all__ = ["PIC", "KMeans", "Whitening"]
