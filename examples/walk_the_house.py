"""DeepCluster in one screen, from the library's parts and without its engine: python examples/walk_the_house.py

Images -> features -> whitened features -> k-means -> pseudo-labels -> loss, and again. `deepcluster train` does the
same with checkpoints, progress bars and everything else that a long run needs.
"""

from __future__ import annotations

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


def walk(epochs: int = 3, k: int = 20) -> list[float]:
    """Trains on the bundled digits; returns the agreement with their labels after each clustering."""
    torch.manual_seed(0)
    source = open_images("digits")
    pixels = load_pixels(source, short_side=None, cache_gb=1)
    backbone = build_backbone("convnet", image_size=8)
    group = ViewGroup(size=8, crop_scale=None, flip=0.0, rotate=10, translate=0.1, mean=backbone.mean, std=backbone.std)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=2e-3)
    agreement = []
    for epoch in range(epochs):
        # Describe every image once, reduce and whiten the descriptions, and group them (sections 3.2 and 3.3).
        index, features = extract(backbone, pixels)
        whitened = Whitening(16).fit_transform(features)
        assignment = torch.as_tensor(KMeans(k, random_state=epoch).fit_predict(whitened))
        agreement.append(nmi(source.labels, assignment))
        print(f"epoch {epoch}: {len(index)} images in {k} clusters, NMI with the labels {agreement[-1]:.3f}")
        # Teach the network, and a classifier drawn anew, to predict the groups; every group equally often.
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
    return agreement


if __name__ == "__main__":
    walk()
