"""DeepCluster on one page, from the library's parts and without its engine.

    python examples/01_deepcluster_in_one_page.py

Images -> features -> whitened features -> k-means -> pseudo-labels -> loss, and again. `deepcluster train` does the
same with checkpoints, progress bars and everything else that a long run needs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.metrics import nmi
from deepcluster.clustering.whitening import Whitening
from deepcluster.data.cache import load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.sampler import epoch_order
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.features.extract import extract
from deepcluster.models.heads import LinearClassifier
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded


def train(data: str = "digits", size: int = 8, epochs: int = 3, k: int = 20) -> tuple[list[float], torch.Tensor]:
    """Trains on the bundled digits, or on other small images of `size` pixels; returns the agreement with their labels
    (NMI) after each clustering, and the (N,) last assignment."""
    torch.manual_seed(0)
    source = open_images(data)
    pixels = load_pixels(source, short_side=None, cache_gb=1)
    backbone = build_backbone("convnet", image_size=size)
    group = ViewGroup(
        size=size, crop_scale=None, flip=0.0, rotate=10, translate=0.1, mean=backbone.mean, std=backbone.std
    )
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=2e-3)
    agreement = []
    assignment = torch.full((len(source),), -1)  # a file that cannot be decoded has no cluster
    for epoch in range(epochs):
        # Extract features of every image, reduce and whiten them, and cluster them (arXiv 1807.05520, 3.2 and 3.3).
        index, features = extract(backbone, pixels)
        whitened = Whitening(16).fit_transform(features)
        assignment[index] = torch.as_tensor(KMeans(k, random_state=epoch).fit_predict(whitened))
        agreement.append(nmi(np.asarray(source.labels)[index], assignment[index]))
        print(f"epoch {epoch}: {len(index)} images in {k} clusters, NMI with the labels {agreement[-1]:.3f}")
        # Train the network and a newly initialized classifier to predict the clusters, each equally often.
        head = LinearClassifier(backbone.dim, k)
        both = [optimizer, torch.optim.AdamW(head.parameters(), lr=2e-2)]
        order = epoch_order(assignment, len(index), "uniform", seeded(0, epoch))
        backbone.train()
        for batch in Loader(pixels, order, batch_size=64, transform=RandomViews(group), key=(0, epoch)):
            loss = F.cross_entropy(head(backbone(batch.views[0])), assignment[batch.index])
            loss.backward()
            for each in both:
                each.step()
                each.zero_grad()
    return agreement, assignment


if __name__ == "__main__":
    train()
