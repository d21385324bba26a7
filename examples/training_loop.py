"""Any of the methods in a plain PyTorch loop: your data set, your views, your optimizer, and the method's loss.

    python examples/training_loop.py

A method is an `nn.Module` that asks for three things: features of all images when clusters are due, an order in which
to show the images, and a step of its own optimizers (of classifiers and heads) beside yours. `deepcluster train` adds
checkpoints to the bit, several processes, and everything else that a long run needs; `lightning_module.py` has the same
in Lightning.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from deepcluster.clustering.metrics import nmi
from deepcluster.engine.model import CLUSTERS, Model
from deepcluster.methods.base import Features, Method
from deepcluster.methods.params import METHODS, method_class
from deepcluster.models.zoo import build_backbone
from deepcluster.random import seeded
from deepcluster.types import Batch, TrainStep

OPTIONS = {
    "deepcluster": {"k": 20, "whiten": 16, "head": "centroids"},
    "deepercluster": {"k": 20, "super_clusters": 2, "whiten": 16, "rotations": False, "reassign": 1.0},
    "odc": {"k": 20, "feature_dim": 32, "hidden": 64, "dropout": 0.0, "start": "whitened"},
    "deepcluster-v2": {"k": 20, "feature_dim": 32, "hidden": 64},
    "swav": {"k": 20, "feature_dim": 32, "hidden": 64},
}
BATCH, SEED = 64, 0


class Views(Dataset):
    """Two random views of each image, and its number."""

    def __init__(self, images: Tensor, mean: Iterable[float], std: Iterable[float]) -> None:
        self.images = images  # (N, 3, H, W) uint8
        self.plain = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
        self.random = v2.Compose([v2.RandomAffine(12, (0.13, 0.13), (0.87, 1.15)), self.plain])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.random(self.images[index]), self.random(self.images[index])


def digits(count: int = 1797) -> tuple[Tensor, np.ndarray]:
    """Handwritten digits (N, 3, 8, 8) uint8 and their classes (N,), which only the score below sees."""
    found = load_digits()
    gray = torch.from_numpy(found.images[:count] / 16 * 255).to(torch.uint8)
    return gray[:, None].expand(-1, 3, -1, -1), found.target[:count]


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float | None = None, momentum: float | None = None
) -> torch.optim.Optimizer:
    """Yours for the network; the method makes its own by it, too."""
    return torch.optim.AdamW(parameters, lr=2e-3 if lr is None else lr)


def make_method(name: str, n: int) -> Method:
    """One of `METHODS` for n images, with a small network."""
    torch.manual_seed(SEED)
    params = METHODS[name][0](**OPTIONS[name])
    backbone = build_backbone("convnet", image_size=8, widths=[32, 64, 128], pools=[1, 2])
    return method_class(params)(backbone, params, n=n, make_optimizer=make_optimizer)


@torch.no_grad()
def features(method: Method, views: Views) -> Features:
    """The features of all images as they are, by the network that the method clusters with."""
    network = method.feature_network
    training, device = network.training, next(network.parameters()).device
    network.eval()
    rows = [network(views.plain(part).to(device)).cpu() for part in views.images.split(256)]
    network.train(training)
    return Features(np.arange(len(views)), torch.cat(rows).numpy())


def train(name: str = "deepcluster", count: int = 1797, epochs: int = 4, out: Path | None = None) -> list[float]:
    """Trains on the digits; returns the agreement (NMI) of the clusters with their classes, epoch by epoch.

    Args:
        out: a folder for the model, which `deepcluster.from_pretrained` opens.
    """
    images, classes = digits(count)
    method = make_method(name, len(images))
    views = Views(images, method.backbone.mean, method.backbone.std)
    optimizer = make_optimizer(method.backbone.parameters())
    per_epoch = -(-len(images) // BATCH)
    agreement, clustering = [], None
    for epoch in range(epochs):
        step = epoch * per_epoch
        if method.due(step, per_epoch):
            clustering = method.refresh(lambda: features(method, views), (SEED, step))
        agreement.append(nmi(classes, method.assignment))
        order = method.order(len(images), seeded(SEED, epoch))
        method.train()
        for index, *pair in DataLoader(views, BATCH, sampler=order.tolist()):
            done = step - epoch * per_epoch
            batch = Batch(index, tuple(pair), torch.arange(len(index)), len(index), first=done * BATCH)
            loss = method.loss(batch, TrainStep(step, per_epoch, epochs * per_epoch))["loss"]
            optimizers = [optimizer, *method.optimizers().values()]  # a clustering may have made new ones
            for each in optimizers:
                each.zero_grad()
            loss.backward()
            for each in optimizers:
                each.step()
            method.after_step(batch)
            step += 1
        print(f"{name}, epoch {epoch}: loss {loss:.3f}, NMI with the classes {agreement[-1]:.3f}")
    if out is not None and clustering is not None:
        key = (SEED, epochs * per_epoch)
        found = method.finish(lambda: features(method, views), key) or clustering
        Model(method.feature_network.eval(), found.centroids, method.embedding).save(out / CLUSTERS)
    return agreement


if __name__ == "__main__":
    for method_name in OPTIONS:
        train(method_name, epochs=2)
