"""What the protocols of this folder share: settings, file names, and training and scoring with several seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepcluster.data.transforms import CenterCrop, TenCrop, Transform
from deepcluster.digest import digest
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.features import PRECISIONS
from deepcluster.evaluate.linear.heads import Layers, layers_of
from deepcluster.evaluate.linear.probe import Classifier, Probe, network_digest
from deepcluster.evaluate.linear.recipes import Recipe
from deepcluster.evaluate.linear.splits import LabeledData
from deepcluster.evaluate.linear.training import Learner, Read, accuracy, train_learners
from deepcluster.evaluate.result import Result, mean_and_std
from deepcluster.resume import ResumeFile

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

Precision = Literal["32", "bf16", "16"]
Report = Literal["last", "best-epoch"]
REPORTS = {
    "last": "after the last epoch",
    "best-epoch": "after the epoch that the TEST set likes best, the papers' habit: optimistic",
}


@dataclass
class Evaluation:
    """One call of a protocol.

    Attributes:
        seeds, seed: number of repetitions, and the seed of the first.
        crops, report: see `linear`; report "" where there are no epochs.
        after_step: see `trainer.train`.
        settings: what the result says about how it was made.
        key: digest of all that the scores depend on, once `start` was called.
    """

    protocol: str
    subject: Subject
    data: LabeledData
    seeds: int
    seed: int
    precision: Precision
    screen: Screen
    crops: int = 1
    report: str = ""
    after_step: Callable[[int], object] = lambda done: None
    settings: dict[str, Any] = field(init=False)
    key: str = field(init=False)

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

    @property
    def test_transform(self) -> Transform:
        """Makes the views that test images are scored on."""
        backbone = self.subject.backbone
        return (TenCrop if self.crops == 10 else CenterCrop)(backbone.image_size, backbone.mean, backbone.std)

    @property
    def file(self) -> Path:
        """Of the trained classifiers; evaluations with other settings, weights or images have other files."""
        return Path(self.subject.results) / f"{self.protocol}-{self.key[:8]}.safetensors"

    def start(self, settings: Mapping[str, Any], *depends_on: Any) -> None:
        """Adds the protocol's own settings, and settles the key.

        Args:
            depends_on: what the scores depend on besides the settings.
        """
        self.settings |= settings
        splits = [[s.pixels.source.fingerprint(), s.index, s.labels] for s in (self.data.train, self.data.test)]
        self.key = digest(self.settings, splits, network_digest(self.subject.backbone), self.subject.device, depends_on)

    def resume_file(self) -> ResumeFile:
        """Holds the unfinished trainings."""
        return ResumeFile(self.file.with_suffix(".state"), self.key, say=self.screen.say)

    def save(self, classifiers: Mapping[str, Classifier], weights: str | None = None) -> None:
        """Writes the classifiers; `weights` is the digest of their network, where that is not the subject's."""
        weights = weights or network_digest(self.subject.backbone)
        Probe(classifiers, self.data.classes, weights, self.settings).save(self.file)

    def scores(self, name: str, top1: float, top5: float) -> dict[str, float]:
        """Top-5 says nothing where there are no more than five classes."""
        return {f"{name}_top1": top1} | ({f"{name}_top5": top5} if len(self.data.classes) > 5 else {})

    def result(self, draws: list[dict[str, Any]]) -> Result:
        """Means over draws that are alike."""
        scores = [{name: value for name, value in draw.items() if name.endswith(("_top1", "_top5"))} for draw in draws]
        return Result(self.protocol, self.all_settings(), mean_and_std(scores), draws if len(draws) > 1 else [])

    def all_settings(self) -> dict[str, Any]:
        """For the result."""
        return {**self.data.settings(), **self.settings, "trained": f"{self.file} (load_probe reads it)"}


def check_choice(option: str, value: Any, choices: Collection[Any]) -> None:
    """Raises: DeepClusterError: the value of an option is none of its choices."""
    if value not in choices:
        raise DeepClusterError(f"--{option} {value!r} does not exist: choose one of {', '.join(map(str, choices))}.")


def check_common(crops: int, report: str, seeds: int, folds: int, precision: str) -> None:
    """Raises: DeepClusterError: a value that makes no sense."""
    check_choice("crops", crops, (1, 10))
    check_choice("report", report, REPORTS)
    check_choice("precision", precision, PRECISIONS)
    if seeds < 1:
        raise DeepClusterError(f"--seeds {seeds} is too few: give 1 or more.")
    if folds < 2:
        raise DeepClusterError(f"--folds {folds} leaves nothing to learn from: give 2 or more.")


def train_draws(
    evaluation: Evaluation,
    resume: ResumeFile,
    learners_of: Callable[[int], list[Learner]],
    read: Read,
    recipe: Recipe,
    classifier_of: Callable[[str, Layers], Classifier],
    score_name: Callable[[str], str],
) -> list[dict[str, Any]]:
    """Trains with each seed and scores on the test images; the classifiers of the first seed are saved.

    Args:
        learners_of: seed -> untrained learners.
        classifier_of: tap, trained layers -> what is saved.
        score_name: tap -> the name of its scores.

    Returns:
        One mapping for each seed: the scores and, where the best epoch is reported, which it was.
    """
    data, screen, device = evaluation.data, evaluation.screen, evaluation.subject.device

    def score(learners: list[Learner]) -> list[list[float]]:
        with screen.bar("test", len(data.test)) as bar:
            scores = accuracy(learners, read, data.test, evaluation.test_transform, device=device, check=bar)
        return [list(pair) for pair in scores]

    def train_seed(seed: int) -> list[Any]:
        learners = learners_of(seed)
        notes: dict[str, Any] = {}

        def current(epoch: int | None) -> list[Any]:
            """Of each learner: scores, layers, epoch."""
            return [[own, layers_of(one.head), epoch] for own, one in zip(score(learners), learners, strict=True)]

        def keep_best(epoch: int) -> None:
            new = current(epoch)
            notes["best"] = [a if a[0][0] > b[0][0] else b for a, b in zip(new, notes.get("best", new), strict=True)]

        train_learners(
            learners,
            read,
            data.train,
            recipe.transform(evaluation.subject.backbone),
            recipe,
            seed=seed,
            device=device,
            resume=resume,
            screen=screen,
            name=f"seed {seed}",
            notes=notes,
            after_epoch=keep_best if evaluation.report == "best-epoch" else lambda done: None,
            after_step=evaluation.after_step,
        )
        found = notes.get("best") or current(None)
        taps = [learner.tap for learner in learners]
        if seed == evaluation.seed:
            evaluation.save({tap: classifier_of(tap, layers) for tap, (_, layers, _) in zip(taps, found, strict=True)})
        return [[tap, own, epoch] for tap, (own, _, epoch) in zip(taps, found, strict=True)]

    draws = []
    for seed in range(evaluation.seed, evaluation.seed + evaluation.seeds):
        draw: dict[str, Any] = {"seed": seed}
        for tap, (top1, top5), epoch in resume.run(f"seed {seed}", partial(train_seed, seed)):
            draw |= evaluation.scores(score_name(tap), top1, top5)
            if epoch is not None:
                draw[f"{score_name(tap)}_epoch"] = epoch
        draws.append(draw)
    resume.remove()
    return draws
