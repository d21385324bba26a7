"""What the protocols of this folder share: training several classifiers in one pass over the images, their accuracy,
repetitions with several seeds, settings and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.data.loader import Loader
from deepcluster.data.transforms import CenterCrop, TenCrop
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.evaluate.linear.features import PRECISIONS, FrozenFeatures, Pooling
from deepcluster.evaluate.linear.heads import Layers, layers_of
from deepcluster.evaluate.linear.logistic import count_hits
from deepcluster.evaluate.linear.probe import Classifier, Probe, network_digest
from deepcluster.evaluate.linear.recipes import Recipe
from deepcluster.evaluate.linear.splits import LabeledData, Split
from deepcluster.evaluate.options import check_choice, check_counts
from deepcluster.evaluate.result import Result, mean_and_std
from deepcluster.evaluate.tensor_file import trained_file
from deepcluster.evaluate.trainer import train_on_views
from deepcluster.random import seeded
from deepcluster.resume import ResumeFile
from deepcluster.types import Batch

ORDER = 21
"""Purpose of the key (seed, purpose, epoch)."""

Precision = Literal["32", "bf16", "16"]
Report = Literal["last", "best-epoch"]
REPORTS = {
    "last": "after the last epoch",
    "best-epoch": "after the epoch that the TEST set likes best, the papers' habit: optimistic",
}

Read = Callable[[Tensor], Mapping[str, Tensor]]
"""(B, 3, S, S) images -> tap -> what the heads of that tap take."""


@dataclass
class Learner:
    """One classifier to train."""

    tap: str  # what it reads
    head: nn.Module  # (B, ...) -> (B, K) logits
    lr: float
    weight_decay: float
    multiplier: tuple[str, float] = ("", 1.0)  # beginning of parameter names, factor of their learning rate

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer; `base_lr` and `multiplier` are for the schedule."""
        prefix, factor = self.multiplier
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.head.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(factor if name.startswith(prefix) else 1.0, []).append(parameter)
        common = {"base_lr": self.lr, "weight_decay": self.weight_decay}
        return [{"params": own, "multiplier": factor, **common} for factor, own in groups.items()]


@dataclass
class Evaluation:
    """One call of a protocol; for `file` and `resume` see `tensor_file.trained_file`."""

    protocol: str
    subject: Subject
    data: LabeledData
    seeds: int  # number of repetitions
    seed: int  # of the first of them
    precision: Precision
    screen: Screen
    crops: int = 1  # see `linear`
    report: str = ""  # likewise; empty where there are no epochs
    settings: dict[str, Any] = field(init=False)  # what the result says about how it was made
    file: Path = field(init=False)
    resume: ResumeFile = field(init=False)

    def __post_init__(self) -> None:
        crops = "ten crops of the resized image, softmax averaged" if self.crops == 10 else "the central crop"
        self.settings = {
            "subject": self.subject.name,
            "test_crops": f"{crops}, {self.subject.backbone.image_size} px",
            **({"report": f"scored {REPORTS[self.report]}"} if self.report else {}),
            "seeds": self.seeds,
            "seed": self.seed,
            "precision": self.precision,
        }

    def start(self, settings: Mapping[str, Any], *depends_on: Any) -> None:
        """Adds the protocol's own settings, and settles the names of the files by these and by what else the scores
        depend on."""
        self.settings |= settings
        splits = [[s.pixels.source.fingerprint(), s.index, s.labels] for s in (self.data.train, self.data.test)]
        everything = [self.settings, splits, self.subject.device, depends_on]
        self.file, self.resume = trained_file(self.subject, self.protocol, everything, self.screen)

    def train(
        self, learners: list[Learner], read: Read, split: Split, recipe: Recipe, *, seed: int, **more: Any
    ) -> None:
        """Trains the learners' heads in place, in one pass over the images, each as if it were alone, by a recipe but
        for their own learning rates and weight decays. `read` gives what the heads take, `seed` is of order, views and
        dropout; for the rest see `trainer.train`."""
        device = self.subject.device
        heads = [learner.head.to(device) for learner in learners]
        labels = _labels_by_index(split, device)

        def loss(batch: Batch) -> Tensor:
            inputs, targets = read(batch.views[0]), labels[batch.index.to(device)]
            losses = [F.cross_entropy(learner.head(inputs[learner.tap]), targets) for learner in learners]
            # The heads share no parameter, so the gradient of the sum is each one's own.
            return torch.stack([own.float() for own in losses]).sum()

        train_on_views(
            heads,
            [group for learner in learners for group in learner.parameter_groups()],
            split.pixels,
            lambda epoch: split.index[torch.randperm(len(split), generator=seeded(seed, ORDER, epoch)).numpy()],
            recipe,
            recipe.transform(self.subject.backbone),
            loss,
            seed=seed,
            device=device,
            # batch-norm over vectors needs two of them
            fewest=2 if any(isinstance(module, _BatchNorm) for head in heads for module in head.modules()) else 1,
            resume=self.resume,
            screen=self.screen,
            **more,
        )

    def features(self, tap: str, pooling: Pooling) -> list[tuple[Tensor, Tensor]]:
        """Of the training and of the test images: (m, dim) features of the central crop and (m,) labels of those that
        can be decoded, on the device."""
        backbone, device = self.subject.backbone, self.subject.device
        frozen = FrozenFeatures(backbone, {tap: pooling}, device, self.precision)
        crop = CenterCrop(backbone.image_size, backbone.mean, backbone.std)
        splits, found = (self.data.train, self.data.test), []
        with self.screen.bar(f"features {tap}", sum(map(len, splits))) as bar:
            for split in splits:
                decoded, tables = frozen.extract(split.pixels, split.index, crop, check=bar)
                labels = torch.from_numpy(split.labels[decoded])
                found.append((torch.from_numpy(tables[tap]).to(device), labels.to(device)))
        return found

    @torch.no_grad()
    def accuracy(self, learners: list[Learner], read: Read, split: Split | None = None) -> list[list[float]]:
        """Top-1 and top-5 accuracy of each learner on the test images, softmax averaged over the crops of an image; or
        on the central crops of another `split`."""
        backbone, device = self.subject.backbone, self.subject.device
        crop = TenCrop if split is None and self.crops == 10 else CenterCrop
        split = split or self.data.test
        transform = crop(backbone.image_size, backbone.mean, backbone.std)
        loader = Loader(split.pixels, split.index, batch_size=256, transform=transform, device=device)
        labels = _labels_by_index(split, device)
        hits, images = torch.zeros(len(learners), 2, dtype=torch.float64), 0
        for learner in learners:
            learner.head.eval()
        with self.screen.bar("test", len(split)) as bar:
            for batch in loader:
                scores = [torch.zeros((), device=device)] * len(learners)
                for inputs in map(read, batch.views):
                    for number, learner in enumerate(learners):
                        scores[number] = scores[number] + learner.head(inputs[learner.tap]).float().softmax(1)
                targets = labels[batch.index.to(device)]
                hits += torch.tensor([count_hits(own, targets) for own in scores])
                images += len(targets)
                bar(len(targets))
        return [[top1 / images, top5 / images] for top1, top5 in hits.tolist()]

    def train_draws(
        self,
        learners_of: Callable[[int], list[Learner]],
        read: Read,
        recipe: Recipe,
        classifier_of: Callable[[str, Layers], Classifier],
        score_name: Callable[[str], str],
    ) -> Result:
        """Trains the learners of each seed and scores them on the test images, under the `score_name` of their taps;
        what `classifier_of` makes of tap and layers for the first seed is saved."""
        every_epoch = self.report == "best-epoch"

        def train_seed(seed: int) -> dict[str, Any]:
            learners, found = learners_of(seed), dict[str, Any]()  # tap -> scores, their epoch, layers

            def score(epoch: int) -> None:
                for one, own in zip(learners, self.accuracy(learners, read), strict=True):
                    if one.tap not in found or own[0] > found[one.tap][0][0]:
                        found[one.tap] = [own, epoch, layers_of(one.head)]

            options: dict[str, Any] = {"after_epoch": score} if every_epoch else {}
            name = f"seed {seed}"
            self.train(learners, read, self.data.train, recipe, seed=seed, name=name, notes=found, **options)
            if not every_epoch:
                score(0)
            if seed == self.seed:
                self.save({tap: classifier_of(tap, layers) for tap, (_, _, layers) in found.items()})
            draw: dict[str, Any] = {"seed": seed}
            for tap, (own, epoch, _) in found.items():
                draw |= self.scores(score_name(tap), *own)
                if every_epoch:
                    draw[f"{score_name(tap)}_epoch"] = epoch
            return draw

        seeds = range(self.seed, self.seed + self.seeds)
        draws = [self.resume.run(f"seed {seed}", partial(train_seed, seed)) for seed in seeds]
        self.resume.remove()
        return self.result(draws)

    def save(self, classifiers: Mapping[str, Classifier], weights: str | None = None) -> None:
        """Writes the classifiers; `weights` is the digest of their network, where that is not the subject's."""
        weights = weights or network_digest(self.subject.backbone)
        Probe(classifiers, self.data.classes, weights, self.settings).save(self.file)

    def scores(self, name: str, top1: float, top5: float) -> dict[str, float]:
        """Top-5 says nothing where there are no more than five classes."""
        return {f"{name}_top1": top1} | ({f"{name}_top5": top5} if len(self.data.classes) > 5 else {})

    def result(self, draws: list[dict[str, Any]]) -> Result:
        """Means over the draws that have a score."""
        scores = [{name: value for name, value in draw.items() if name.endswith(("_top1", "_top5"))} for draw in draws]
        settings = {**self.data.settings(), **self.settings, "trained": f"{self.file} (load_probe reads it)"}
        return Result(self.protocol, settings, mean_and_std(scores), draws if len(draws) > 1 else [])


def _labels_by_index(split: Split, device: str | torch.device) -> Tensor:
    """(N,) int64 labels of all images of the source; only those of the split mean anything."""
    labels = torch.zeros(len(split.pixels), dtype=torch.int64)
    labels[torch.from_numpy(split.index)] = torch.from_numpy(split.labels)
    return labels.to(device)


def check_common(crops: int, report: str, seeds: int, precision: str) -> None:
    """Raises: DeepClusterError: a value that makes no sense."""
    check_choice("crops", crops, (1, 10))
    check_choice("report", report, REPORTS)
    check_choice("precision", precision, PRECISIONS)
    check_counts(seeds=seeds)
