"""Any of the methods in a Lightning Trainer, on one device.

    pip install pytorch-lightning
    python examples/lightning_module.py

The clusters are found when Lightning asks for an epoch's data loader, since the order of the images depends on them. A
method has optimizers of its own, which a clustering may make anew, so the steps are done by hand.
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deepcluster.clustering.metrics import nmi
from deepcluster.methods.base import Method
from deepcluster.random import seeded
from deepcluster.types import Batch, TrainStep
from training_loop import BATCH, OPTIONS, SEED, Views, digits, features, make_method, make_optimizer


class DeepClustering(pl.LightningModule):
    """A method of deep clustering as a module of Lightning.

    Args:
        method: of `training_loop.make_method`, for as many images as there are in `views`.
        views: two random views of each image, and its number.
    """

    def __init__(self, method: Method, views: Views) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method, self.views = method, views
        self.per_epoch = -(-len(views) // BATCH)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.method.backbone.parameters())

    def train_dataloader(self) -> DataLoader:
        step = self.current_epoch * self.per_epoch
        if self.method.due(step, self.per_epoch):
            self.method.refresh(lambda: features(self.method, self.views), (SEED, step))
        order = self.method.order(len(self.views), seeded(SEED, self.current_epoch))
        return DataLoader(self.views, BATCH, sampler=order.tolist())

    def training_step(self, rows: list[Tensor], number: int) -> None:
        index, *pair = rows
        batch = Batch(index.cpu(), tuple(pair), torch.arange(len(index)), len(index), first=number * BATCH)
        step = TrainStep(
            self.current_epoch * self.per_epoch + number, self.per_epoch, self.per_epoch * self.trainer.max_epochs
        )
        loss = self.method.loss(batch, step)["loss"]
        optimizers = [self.optimizers(), *self.method.optimizers().values()]
        for each in optimizers:
            each.zero_grad()
        self.manual_backward(loss)
        for each in optimizers:
            each.step()
        self.method.after_step(batch)
        self.log("loss", loss, on_epoch=True, on_step=False, batch_size=len(index))


def train(name: str = "deepcluster", count: int = 1797, epochs: int = 4, **options: object) -> DeepClustering:
    """Trains on the digits; `options` are those of `pl.Trainer`."""
    images, _ = digits(count)
    method = make_method(name, len(images))
    module = DeepClustering(method, Views(images, method.backbone.mean, method.backbone.std))
    pl.Trainer(max_epochs=epochs, devices=1, reload_dataloaders_every_n_epochs=1, **options).fit(module)
    return module


if __name__ == "__main__":
    for method_name in OPTIONS:
        trained = train(method_name, epochs=2, logger=False, enable_checkpointing=False)
        loss = trained.trainer.callback_metrics["loss"]
        print(f"{method_name}: loss {loss:.3f}, NMI with the classes {nmi(digits()[1], trained.method.assignment):.3f}")
