"""Clustering of feature tables: whitening, k-means, PIC, self-labelling heads and the scores of a grouping."""

from deepcluster.clustering.hierarchical import HierarchicalKMeans
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.pic import PIC
from deepcluster.clustering.temi import TEMI
from deepcluster.clustering.whitening import Whitening

__all__ = ["PIC", "TEMI", "HierarchicalKMeans", "KMeans", "Whitening"]
