"""What training a detector and a segmenter have in common: images of their own sizes, SGD, several draws.

The loop itself is evaluate/trainer.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import functional

from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.engine.checkpoint import preserve_random_state
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.evaluate.options import check_counts
from deepcluster.evaluate.result import Result, mean_and_std
from deepcluster.evaluate.tensor_file import save_tensors, trained_file
from deepcluster.evaluate.trainer import train
from deepcluster.evaluate.voc.dataset import VOC
from deepcluster.evaluate.voc.maps import MapNetwork, calibrate_batch_norms, freeze_batch_norms, trainable_copy
from deepcluster.models.backbone import Backbone
from deepcluster.random import seed_of, seeded

ORDER, BUILD = 1, 3
"""Purposes of the keys of random draws: the order of images, new layers."""
CALIBRATION = 32
"""Training images that measure batch-norm statistics where no training has; also the purpose of their key."""

Trained = Literal["all", "fc6-8"]
"""What of a network is trained: every weight, or the layers behind the convolutions; the papers' two columns."""

Network = TypeVar("Network", bound=MapNetwork)


@dataclass(frozen=True)
class SGDConfig:
    """So many iterations of SGD with momentum, on batches of so many images."""

    iterations: int
    batch: int
    lr: float  # of the first step; biases learn twice as fast, as in all of these papers (arXiv 1504.08083 §2.3)
    drops: tuple[int, ...]  # steps at which the rate falls to a tenth
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_counts(iterations=self.iterations, batch=self.batch)

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return self.lr * 0.1 ** sum(step >= drop for drop in self.drops)

    def optimizer(self, network: nn.Module) -> torch.optim.SGD:
        """Of those weights that are to be trained."""
        named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        biases = [weight for name, weight in named if name.endswith("bias")]
        others = [weight for name, weight in named if not name.endswith("bias")]
        groups = [{"params": others, "factor": 1.0}, {"params": biases, "factor": 2.0}]
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


def load_split(voc: VOC, subject: Subject, screen: Screen, short_side: int | None = None) -> Pixels:
    """The images of a split, decoded once where there is room to keep them; by default at their own size."""
    with screen.bar(f"images of {voc.split}", len(voc)) as bar:
        return load_pixels(
            voc.images,
            short_side=short_side,
            cache_gb=subject.cache_gb,
            workers=subject.workers,
            progress=lambda count, total: bar.to(count),
        )


class Examples:
    """Images of a split as tensors, decoded once where there is room to keep them."""

    def __init__(self, voc: VOC, subject: Subject, screen: Screen) -> None:
        self.voc, self.device = voc, subject.device
        self.pixels = load_split(voc, subject, screen)
        self.bad = self.pixels.bad  # index -> reason, of the images that are left out

    def image(self, index: int) -> Tensor | None:
        """(3, H, W) uint8; None where it is missing or broken."""
        (image,) = self.pixels.gather(np.array([index]))
        return None if image is None else torch.from_numpy(image.copy()).to(self.device).permute(2, 0, 1)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 as a network takes them."""
    normalized: Tensor = functional.normalize(images.float() / 255, list(mean), list(std))
    return normalized


def calibrated_copy(subject: Subject, examples: Examples, images: Sequence[int], seed: int) -> Backbone:
    """A copy of the subject's backbone on its device; batch-norm that was never trained has the statistics of some of
    the images, see `calibrate_batch_norms`."""
    backbone = trainable_copy(subject.backbone).to(subject.device)
    size = (backbone.image_size, backbone.image_size)
    order = torch.randperm(len(images), generator=seeded(seed, CALIBRATION)).tolist()
    chosen = (examples.image(images[position]) for position in order[:CALIBRATION])
    resized = [
        F.interpolate(normalize(image[None], backbone.mean, backbone.std), size, mode="bilinear", antialias=True)
        for image in chosen
        if image is not None
    ]
    if resized:
        calibrate_batch_norms(backbone, torch.cat(resized))
    return backbone


def shuffled_batches(
    images: Sequence[int], batch: int, seed: int, step: int
) -> Generator[list[tuple[int, int]], None, None]:
    """The (image, epoch) pairs of each batch from `step` on; every epoch is a shuffle of its own, and batches may
    reach into the next one."""

    def shuffle(epoch: int) -> Iterable[tuple[int, int]]:
        order = torch.randperm(len(images), generator=seeded(seed, ORDER, epoch)).tolist()
        return ((images[position], epoch) for position in order)

    epoch, first = divmod(step * batch, len(images))
    pairs = itertools.islice(itertools.chain.from_iterable(map(shuffle, itertools.count(epoch))), first, None)
    while True:
        yield list(itertools.islice(pairs, batch))


def train_and_score(
    protocol: str,
    sentence: str,
    subject: Subject,
    learned: Examples,
    tested: Examples,
    images: Sequence[int],
    sgd: SGDConfig,
    settings: dict[str, Any],
    *,
    trained: Trained,
    draws: int,
    seed: int,
    screen: Screen,
    build: Callable[[Backbone], Network],
    loss: Callable[[Network, int, list[tuple[int, int]]], Tensor | None],
    score: Callable[[Network], dict[str, float]],
) -> Result:
    """Trains, scores and saves one network for each of the seeds that follow `seed`; killed, it continues to the bit.

    Args:
        sentence: what is scored, in words.
        images: indices of training images.
        settings: all else that the scores depend on.
        trained: what is trained; the rest of `network.maps` is frozen.
        build: backbone -> network before training.
        loss: network, seed and (image, epoch) pairs -> loss, if there is one.
        score: scores of a trained network.
    """
    settings = {
        "data": learned.voc.name,
        "split": learned.voc.split,
        "test": tested.voc.name,
        "test_split": tested.voc.split,
        "images_data": len(images),
        "images_test": len(tested.voc),
        "classes": list(learned.voc.classes),
        **settings,
        **asdict(sgd),
        "train": trained,
        "seed": seed,
        "draws": draws,
        "backbone": subject.backbone.config,
    }
    fingerprints = [part.voc.images.fingerprint() for part in (learned, tested)]
    file, resume = trained_file(subject, protocol, [settings, fingerprints], screen)

    def one_draw(draw: int) -> dict[str, float]:
        with preserve_random_state():
            torch.manual_seed(seed_of(seed + draw, BUILD))
            network = build(calibrated_copy(subject, learned, images, seed + draw)).to(subject.device)
        network.maps.requires_grad_(trained == "all")
        freeze_batch_norms(network.maps)
        train(
            [network],
            sgd.optimizer(network),
            partial(shuffled_batches, images, sgd.batch, seed + draw),
            lambda batch, step: loss(network, seed + draw, batch),
            steps=sgd.iterations,
            learning_rate=lambda step, group: sgd.learning_rate(step) * group["factor"],
            seed=seed + draw,
            resume=resume,
            screen=screen,
            name=protocol,
        )
        scores = score(network)
        own = file.with_stem(f"{file.stem}-{draw}") if draw else file
        save_tensors(own, network.kind, network.about, network.state_dict())
        return scores

    finished = [resume.run(f"draw {draw}", partial(one_draw, draw)) for draw in range(draws)]
    resume.remove()
    settings["left_out"] = {
        part.voc.images.path(index): reason for part in (learned, tested) for index, reason in part.bad.items()
    }
    settings |= {"protocol": sentence, "file": str(file)}
    return Result(protocol, settings, mean_and_std(finished), finished if draws > 1 else [])
