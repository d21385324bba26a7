"""Protocol `low-shot`: what a network's features are worth with few labels.

k images of each class, or a share of all labels, drawn several times: a linear classifier on features computed once,
or the whole network fine-tuned. This file draws and counts; it trains nothing itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear import cached, recipes
from deepcluster.evaluate.linear.classifier import Problems
from deepcluster.evaluate.linear.frozen import PRECISIONS
from deepcluster.evaluate.linear.frozen import cached as cached_features
from deepcluster.evaluate.linear.heads import layers_of, linear_head
from deepcluster.evaluate.linear.parts import Exam, Part, divide, few
from deepcluster.evaluate.linear.pooling import OUTPUT, poolings
from deepcluster.evaluate.linear.probe import Probe, Trained, digest
from deepcluster.evaluate.linear.recipes import SEMI, Recipe
from deepcluster.evaluate.linear.stages import Stages
from deepcluster.evaluate.linear.training import Learner, Training, judge
from deepcluster.evaluate.linear.work import Work, check_common
from deepcluster.evaluate.result import Result
from deepcluster.models.backbone import Backbone
from deepcluster.models.export import export_backbone
from deepcluster.models.sync_batchnorm import revert_sync_batchnorm

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

SHOTS = (1, 2, 4, 8, 16)
LOSSES = {"logistic": "softmax", "svm": "squared hinge"}
HEAD_MULTIPLIER = 10.0
"""The middle of the three that OpenSelfSup's benchmark tries; so is the rate of `recipes.SEMI`."""
WHOLE = "network"


def low_shot(
    subject: Subject,
    data: Any = None,
    test: Any = None,
    *,
    holdout: float | None = None,
    shots: Sequence[int] | None = None,
    fraction: Sequence[float] | None = None,
    draws: int = 5,
    classifier: str = "logistic",
    c: float | None = None,
    tap: str = OUTPUT,
    fine_tune: bool = False,
    head_multiplier: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    schedule: str | None = None,
    seed: int = 0,
    precision: str = "32",
    screen: Screen | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Result:
    """Protocol `low-shot`: top-1 and top-5 accuracy with few labels, mean and deviation over the draws.

    Args:
        subject: a network; it is left as it is.
        data, test, holdout: as for `linear`; labels are drawn from the training part.
        shots: images of each class; 1 2 4 8 16 where no fraction is asked for either.
        fraction: shares of the labels, of each class alike, at least one image of each.
        draws: how often each number is drawn; the d-th draw of k images is among the d-th of 2 k.
        classifier: "logistic" or "svm".
        c: scikit-learn's C of the classifier of `shots`, on L2-normalized features; 1 by default.
        tap: a layer to read in place of the output.
        fine_tune: for `fraction`: train the whole network, too, from the subject's weights.
        head_multiplier, epochs, lr, weight_decay, batch_size, schedule: of the fine-tuning.

    All others are as for `linear`.

    Raises:
        DeepClusterError: a class has too few images, or options do not go together.
    """
    check_common(1, "last", 1, 2, precision)
    if draws < 1:
        raise DeepClusterError(f"--draws {draws} is too few: give 1 or more.")
    shares = tuple(sorted(float(share) for share in fraction or ()))
    counts = tuple(sorted(shots)) if shots is not None else (() if shares else SHOTS)
    steps = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "batch_size": batch_size, "schedule": schedule}
    _check(counts, shares, classifier, c, tap, fine_tune, {**steps, "head_multiplier": head_multiplier}, precision)
    exam = divide(subject, data, test, holdout, protocol="low-shot", seed=seed)
    if counts:
        _enough(exam, max(counts))
    screen = screen or Screen(quiet=True)
    work = Work(subject, exam, "low-shot", draws, seed, precision, screen, pause, report="")
    found: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"draws": draws, "drawing": "each image once, the same number or share of each class"}
    if counts or not fine_tune:
        found += _on_features(work, counts, () if fine_tune else shares, classifier, c or 1.0, tap, settings)
    if fine_tune:
        tuples = {name: (value,) for name, value in (("lr", lr), ("weight_decay", weight_decay)) if value is not None}
        recipe = recipes.change(SEMI, **(steps | {"lr": None, "weight_decay": None} | tuples))
        multiple = HEAD_MULTIPLIER if head_multiplier is None else head_multiplier
        settings["fine_tuning"] = f"{recipe.said()}; the rate of the new layer is {multiple:g} times that"
        found += _fine_tuned(work, shares, recipe, multiple, settings)
    return _result(work, found, settings)


def _check(
    counts: Sequence[int],
    shares: Sequence[float],
    classifier: str,
    c: float | None,
    tap: str,
    fine_tune: bool,
    steps: dict[str, Any],
    precision: str,
) -> None:
    """Raises: DeepClusterError: options that make no sense, alone or together."""
    if any(count < 1 for count in counts):
        raise DeepClusterError(f"--shots {' '.join(map(str, counts))} must be numbers of images from 1 up.")
    if any(not 0 < share <= 1 for share in shares):
        raise DeepClusterError("--fraction must be shares of the labels, above 0 and at most 1.")
    if classifier not in LOSSES:
        raise DeepClusterError(f"There is no classifier {classifier!r}: choose logistic or svm.")
    if c is not None and (c <= 0 or not counts):
        raise DeepClusterError("--c is of the classifier of --shots, and above 0; that of --fraction is chosen.")
    given = [name for name, value in steps.items() if value is not None]
    if given and not fine_tune:
        raise DeepClusterError(
            f"--{given[0].replace('_', '-')} is of the fine-tuning: add --fine-tune or leave it out."
        )
    if fine_tune and not shares:
        raise DeepClusterError("--fine-tune needs shares of the labels: give --fraction 0.01 0.1.")
    if fine_tune and not counts and (classifier != "logistic" or tap != OUTPUT):
        raise DeepClusterError("--fine-tune trains the whole network: leave out --classifier and --tap.")
    if fine_tune and precision == "16":
        raise DeepClusterError("--fine-tune has no 16-bit floating-point training: use --precision bf16 or 32.")


def _enough(exam: Exam, count: int) -> None:
    """Raises: DeepClusterError: a class has fewer training images that can be decoded."""
    labels = exam.train.labels[exam.train.seen()]
    sizes = np.bincount(labels)[np.unique(labels)]
    if sizes.min() < count:
        name = exam.names[int(np.unique(labels)[sizes.argmin()])]
        raise DeepClusterError(
            f"{count} images of each class were asked for and {name!r} has {sizes.min()}: ask for fewer --shots."
        )


def _on_features(
    work: Work,
    counts: Sequence[int],
    shares: Sequence[float],
    classifier: str,
    c: float,
    tap: str,
    settings: dict[str, Any],
) -> list[dict[str, Any]]:
    """The draws, and the first one's classifier for the largest number saved."""
    subject, exam = work.subject, work.exam
    pools = poolings(subject.backbone, [tap])
    if len(pools) != 1:
        raise DeepClusterError("--tap needs the name of one layer.")
    ((tap, pooling),) = pools.items()
    with work.screen.bar("features", len(exam.train) + len(exam.test)) as advance:
        known, asked = cached_features(
            subject.backbone,
            tap,
            pooling,
            [exam.train, exam.test],
            work.views.center,
            subject.device,
            work.precision,
            advance,
        )
    index = exam.train.index[exam.train.seen()]
    labels = known[1].cpu().numpy()
    settings["features"] = f"{tap} {pooling} of the plain view, computed once"
    what = {"logistic": "logistic regression", "svm": "linear SVM (squared hinge, one against the rest)"}[classifier]
    if counts:
        settings["shots"] = f"{what} on L2-normalized features, C = {c:g}"
    if shares:
        settings["fractions"] = f"{what} on standardized features; decay chosen by folds of the labels that are drawn"
    found = []
    for wanted in (*counts, *shares):
        for number in range(work.seeds):
            rows = few(labels, wanted, work.seed + number)
            places = torch.from_numpy(rows).to(known[0].device)
            x, y = known[0][places], known[1][places]
            if isinstance(wanted, int):
                weight, bias = _shot(F.normalize(x, dim=1), y, exam.classes, LOSSES[classifier], c)
                scores = torch.addmm(bias, F.normalize(asked[0], dim=1), weight.T)
            else:
                fit = cached.fit(x, y, exam.classes, seed=work.seed + number, loss=LOSSES[classifier])
                weight, bias, scores = fit.weight, fit.bias, fit.scores(asked[0])
            found.append(_draw(work, _name(wanted), number, index[rows], cached.accuracies(scores, asked[1])))
            if number == 0:  # the last that is kept is of the largest share, or number
                trained = Trained(pooling, [(weight, bias)], unit=isinstance(wanted, int))
        work.save({tap: trained}, settings)
    return found


def _shot(x: Tensor, y: Tensor, classes: int, loss: str, c: float) -> tuple[Tensor, Tensor]:
    """(K, D) weights and (K,) biases."""
    fit = Problems(x, y, classes, loss).fit(1 / (c * len(x)), tolerance=1e-6)
    return fit.weight[0].T.contiguous(), fit.bias[0]


class Tuned(nn.Module):
    """A whole network with a new last layer: images (B, 3, S, S) -> (B, K) logits."""

    def __init__(self, backbone: Backbone, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(True)
        revert_sync_batchnorm(self.backbone)
        self.head = linear_head(backbone.dim, classes, norm=False, seed=seed, name="head")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def _fine_tuned(
    work: Work, shares: Sequence[float], recipe: Recipe, multiple: float, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """The draws; the first one's network for the largest share is saved, with its last layer as a probe of it."""
    exam = work.exam
    stages: Stages = work.stages(settings["fine_tuning"], shares)
    seen = exam.train.of(exam.train.seen().nonzero()[0])
    found = []
    for share in shares:
        for number in range(work.seeds):
            part = seen.of(few(seen.labels, share, work.seed + number))
            save = share == max(shares) and number == 0
            top1, top5 = stages.run(
                f"{share:g} of the labels, draw {number + 1}",
                partial(_training, work, part, recipe, multiple, work.seed + number),
                partial(_judged, work, save, settings),
            )
            found.append(_draw(work, f"fine_tuned_{share:g}", number, part.index, (top1, top5)))
    stages.finished()
    return found


def _training(work: Work, part: Part, recipe: Recipe, multiple: float, seed: int) -> Training:
    network = Tuned(work.subject.backbone, work.exam.classes, seed)
    learner = Learner(WHOLE, network, recipe.lr[0], recipe.weight_decay[0], (("head", multiple),))
    return Training(
        [learner],
        lambda images: {WHOLE: images},
        part,
        recipe.make(work.views),
        recipe,
        seed=seed,
        device=work.subject.device,
        autocast=PRECISIONS[work.precision],
    )


def _judged(work: Work, save: bool, settings: dict[str, Any], training: Training) -> list[float]:
    with work.screen.bar("test", len(work.exam.test)) as advance:
        (pair,) = judge(
            training.learners,
            training.describe,
            work.exam.test,
            work.test_view,
            device=work.subject.device,
            check=advance,
        )
    if save:
        network: Any = training.learners[0].head
        backbone = network.backbone.eval()
        export_backbone(backbone, "safetensors", work.file.with_name("low-shot-backbone.safetensors"))
        trained = {OUTPUT: Trained(poolings(backbone, [OUTPUT])[OUTPUT], layers_of(network.head))}
        Probe(trained, work.exam.names, digest(backbone), {**work.said(), **settings}).save(work.file)
    return list(pair)


def _name(wanted: int | float) -> str:
    return f"shots_{wanted}" if isinstance(wanted, int) else f"fraction_{wanted:g}"


def _draw(work: Work, name: str, number: int, images: Any, accuracy: tuple[float, float]) -> dict[str, Any]:
    """One draw, as it is listed."""
    scores = work.scores(name, *accuracy)
    return {"of": name, "draw": number, "seed": work.seed + number, "images": images.tolist(), **scores}


def _result(work: Work, found: list[dict[str, Any]], settings: dict[str, Any]) -> Result:
    scores: dict[str, float] = {}
    for name in dict.fromkeys(draw["of"] for draw in found):
        own = [{k: v for k, v in draw.items() if k.startswith(f"{name}_top")} for draw in found if draw["of"] == name]
        scores |= cached.spread(own)
    said = {name: value for name, value in work.said().items() if name != "seeds"}
    whole = {**work.exam.settings(), **said, **settings, "trained": f"{work.file} (load_probe reads it)"}
    return Result(work.protocol, whole, scores, found)
