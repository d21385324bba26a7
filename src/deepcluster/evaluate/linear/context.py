"""What the protocols of this folder share: what they are given, what they say, and the training of their classifiers.

This file does not know what is read of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.cached import spread
from deepcluster.evaluate.linear.feed import Crops, Make
from deepcluster.evaluate.linear.frozen import PRECISIONS
from deepcluster.evaluate.linear.heads import Layers, layers_of
from deepcluster.evaluate.linear.parts import Exam
from deepcluster.evaluate.linear.probe import Probe, Trained, digest
from deepcluster.evaluate.linear.stages import Stages
from deepcluster.evaluate.linear.training import Describe, Training, judge
from deepcluster.evaluate.result import Result
from deepcluster.random import seed_of

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject


@dataclass
class Work:
    """What all protocols of this folder are given.

    Attributes:
        crops, report: see `linear`; report "" where there are no epochs.
    """

    subject: Subject
    exam: Exam
    protocol: str
    seeds: int
    seed: int
    precision: str
    screen: Screen
    pause: Callable[[], None]
    crops: int = 1
    report: str = "last"

    @property
    def views(self) -> Crops:
        """Of this network."""
        backbone = self.subject.backbone
        return Crops(backbone.image_size, backbone.mean, backbone.std)

    @property
    def test_view(self) -> Make:
        """What test images are seen as."""
        return self.views.ten if self.crops == 10 else self.views.center

    @property
    def file(self) -> Path:
        """Of the trained classifiers."""
        return Path(self.subject.results) / f"{self.protocol}.safetensors"

    def said(self) -> dict[str, Any]:
        """Settings that every protocol states."""
        reports = {
            "last": "after the last epoch",
            "best-epoch": "after the epoch that the TEST set likes best, the papers' habit: optimistic",
        }
        crops = "ten crops of the resized image, softmax averaged" if self.crops == 10 else "the central crop"
        return {
            "subject": self.subject.name,
            "test_crops": f"{crops}, {self.views.size} px",
            **({"report": f"scored {reports[self.report]}"} if self.report else {}),
            "seeds": self.seeds,
            "seed": self.seed,
            "precision": self.precision,
        }

    def stages(self, *more: Any) -> Stages:
        """The trainings of this protocol; `more` is what else their numbers depend on."""
        parts = (self.exam.train, self.exam.test)
        whole = [
            [part.pixels.source.fingerprint(), len(part), seed_of(*part.index[:: max(1, len(part) // 64)])]
            for part in parts
        ]
        key = [self.said(), whole, digest(self.subject.backbone), str(self.subject.device), more]
        return Stages(self.file.with_suffix(".state"), key, self.screen, self.pause)

    def save(self, trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> None:
        """Writes the classifiers beside the result."""
        said = {**self.said(), **settings}
        Probe(trained, self.exam.names, digest(self.subject.backbone), said).save(self.file)

    def scores(self, name: str, top1: float, top5: float) -> dict[str, float]:
        """Top-5 says nothing where there are no more than five classes."""
        return {f"{name}_top1": top1} | ({f"{name}_top5": top5} if self.exam.classes > 5 else {})

    def result(self, draws: list[dict[str, Any]], settings: Mapping[str, Any]) -> Result:
        """Means over the draws."""
        scores = [{name: value for name, value in draw.items() if name.endswith(("_top1", "_top5"))} for draw in draws]
        whole = {**self.exam.settings(), **self.said(), **settings, "trained": f"{self.file} (load_probe reads it)"}
        return Result(self.protocol, whole, spread(scores), draws if len(draws) > 1 else [])


def check_common(crops: int, report: str, seeds: int, folds: int, precision: str) -> None:
    """Raises: DeepClusterError: a value that makes no sense."""
    if crops not in (1, 10):
        raise DeepClusterError(f"--crops {crops} is not offered: give 1 (the central crop) or 10.")
    if report not in ("last", "best-epoch"):
        raise DeepClusterError(f"--report {report!r} is not offered: give last or best-epoch.")
    if seeds < 1:
        raise DeepClusterError(f"--seeds {seeds} is too few: give 1 or more.")
    if folds < 2:
        raise DeepClusterError(f"--folds {folds} leaves nothing to learn from: give 2 or more.")
    if precision not in PRECISIONS:
        raise DeepClusterError(f"--precision {precision!r} is not offered: give one of {', '.join(PRECISIONS)}.")


def train_seeds(
    work: Work,
    stages: Stages,
    begin: Callable[[int], Training],
    describe: Describe,
    save: Callable[[list[Layers]], None],
    named: Callable[[str], str],
) -> list[dict[str, Any]]:
    """Trains with each seed and judges on the test images; the classifiers of the first seed are saved.

    Returns:
        One mapping for each seed: scores `NAME_top1`, where `named` gives the tap's name, and, where the best epoch is
        reported, which it was.
    """

    def judged(training: Training) -> list[list[float]]:
        with work.screen.bar("test", len(work.exam.test)) as advance:
            pairs = judge(
                training.learners, describe, work.exam.test, work.test_view, device=work.subject.device, check=advance
            )
        return [list(pair) for pair in pairs]

    def each_epoch(training: Training, epochs: int) -> dict[str, Any]:
        """Of each classifier the best epoch so far: scores, epoch, layers."""
        scores, heads = judged(training), [layers_of(learner.head) for learner in training.learners]
        new: list[dict[str, Any]] = [
            {"scores": own, "epoch": epochs, "layers": head} for own, head in zip(scores, heads, strict=True)
        ]
        old = stages.notes.get("best", new)
        best = [a if a["scores"][0] > b["scores"][0] else b for a, b in zip(new, old, strict=True)]
        return {"best": best}

    def finish(training: Training) -> list[Any]:
        if work.report == "best-epoch":
            best = stages.notes["best"]
            heads: list[Any] = [own["layers"] for own in best]
            out = [
                [learner.tap, own["scores"], own["epoch"]] for learner, own in zip(training.learners, best, strict=True)
            ]
        else:
            heads = [layers_of(learner.head) for learner in training.learners]
            pairs = judged(training)
            out = [[learner.tap, own, None] for learner, own in zip(training.learners, pairs, strict=True)]
        if training.seed == work.seed:
            save(heads)
        return out

    draws = []
    for seed in range(work.seed, work.seed + work.seeds):
        chooses = each_epoch if work.report == "best-epoch" else None
        draw: dict[str, Any] = {"seed": seed}
        for tap, (top1, top5), epoch in stages.run(f"seed {seed}", partial(begin, seed), finish, chooses):
            name = named(tap)
            draw |= work.scores(name, top1, top5)
            if epoch is not None:
                draw[f"{name}_epoch"] = epoch
        draws.append(draw)
    return draws
