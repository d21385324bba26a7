"""SwAV's loss, queue and prototypes against slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepcluster.clustering.sinkhorn import sinkhorn
from deepcluster.methods.base import Features
from deepcluster.methods.params import SwAVParams
from deepcluster.methods.swav import SwAV
from deepcluster.models.zoo import build_backbone
from deepcluster.types import Batch, TrainStep
from groups import STEP, batch, described, sgd

LATER = TrainStep(step=40, steps_per_epoch=8, total=80)


def swav(n: int = 64, k: int = 5, **values: object) -> SwAV:
    torch.manual_seed(0)
    params = SwAVParams(k=k, **({"feature_dim": 6, "hidden": 16} | values))  # type: ignore[arg-type]
    return SwAV(build_backbone("convnet", image_size=12), params, n=n, make_optimizer=sgd)


def two_sizes(small: int = 1) -> Batch:
    """Two large views and some small ones."""
    shown = batch(views=2 + small)
    views = tuple(view[..., :8, :8] if number > 1 else view for number, view in enumerate(shown.views))
    return Batch(shown.index, views, shown.position, shown.whole)


@pytest.mark.parametrize("small", [0, 1, 2])
def test_the_loss_is_that_of_all_swapped_pairs(small: int) -> None:
    learner, shown = swav(), two_sizes(small)
    loss = learner.loss(shown, LATER)["loss"]
    z = [F.normalize(learner.neck(learner.backbone(view)), dim=1) for view in shown.views]
    terms = []
    for source in (0, 1):
        codes = sinkhorn((z[source] @ learner.prototypes.T).detach(), 0.05, 3)
        for other in range(len(z)):
            if other != source:
                for image in range(8):
                    log_probability = torch.log_softmax(z[other][image] @ learner.prototypes.T / 0.1, 0)
                    terms.append(-(codes[image] * log_probability).sum())
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("step", [STEP, LATER])
@pytest.mark.parametrize("queue", [0, 24])
def test_first_step_has_a_finite_loss_and_a_gradient_everywhere(step: TrainStep, queue: int) -> None:
    learner = swav(queue_size=queue, queue_epoch=0.0)
    learner.refresh(described, (0, 0))
    torch.autograd.backward(learner.loss(batch(views=2), step)["loss"])
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None
        if name == "prototypes":  # they are frozen in the first epoch
            assert bool(parameter.grad.any()) is (step is LATER)
        elif parameter.requires_grad and name != "neck.first.bias":  # a bias before batch-norm has no effect
            assert parameter.grad.abs().sum() > 0, name


def test_prototypes_are_frozen_at_first_and_always_of_unit_length() -> None:
    learner, shown = swav(), batch(views=2)
    began = learner.prototypes.detach().clone()
    for step, frozen in ((0, True), (7, True), (8, False), (9, False)):
        optimizer = learner.optimizers()["head"]
        optimizer.zero_grad()
        torch.autograd.backward(learner.loss(shown, TrainStep(step, 8, 80))["loss"])
        optimizer.step()
        learner.after_step(shown)
        assert torch.allclose(learner.prototypes, began, atol=1e-5) is frozen
        torch.testing.assert_close(learner.prototypes.norm(dim=1), torch.ones(5))


def test_the_queue_holds_the_last_embeddings_and_takes_part_from_its_epoch() -> None:
    learner, shown = swav(queue_size=20, queue_epoch=3.0), two_sizes()
    written: list[torch.Tensor] = []
    for turn in range(3):
        rows = [F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(turn + part)), dim=1)
                for part in (0, 100)]  # fmt: skip
        learner._seen = list(rows)
        learner.after_step(shown)
        written += rows
        kept = torch.cat(written)[-20:]
        filled = learner.queue[: int(learner.queued)]
        assert sorted(filled.tolist()) == sorted(kept.tolist())
    early = learner.loss(shown, TrainStep(2 * 8, 8, 80))["loss"]
    alone = swav()
    torch.testing.assert_close(early, alone.loss(shown, TrainStep(2 * 8, 8, 80))["loss"])
    z = F.normalize(learner.neck(learner.backbone(shown.views[0])), dim=1).detach()
    together = torch.cat([z, learner.queue]) @ learner.prototypes.detach().T
    codes = learner._codes((z @ learner.prototypes.T).detach(), with_queue=True)
    torch.testing.assert_close(codes, sinkhorn(together, 0.05, 3)[:8])
    assert not torch.isclose(learner.loss(shown, TrainStep(3 * 8, 8, 80))["loss"], early)


def test_a_batch_larger_than_the_queue_leaves_its_last_rows() -> None:
    learner, shown = swav(queue_size=5), batch(views=2)
    rows = torch.arange(48.0).view(8, 6)
    learner._seen = [rows, rows + 100]
    learner.after_step(shown)
    assert sorted(learner.queue.tolist()) == (rows + 100)[-5:].tolist()


def test_every_image_gets_its_nearest_prototype() -> None:
    learner, features = swav(), described(missing=(3, 9))
    found = learner.refresh(lambda: features, (0, 0))
    z = learner.neck.transform(features.features)
    assert found.assignment[[3, 9]].tolist() == [-1, -1]
    np.testing.assert_array_equal(
        found.assignment[features.index], (z @ learner.prototypes.detach().numpy().T).argmax(1)
    )
    assert learner.assignment.tolist() == found.assignment.tolist()
    assert sorted(learner.order(62, torch.Generator().manual_seed(0)).tolist()) == features.index.tolist()


def test_the_first_assignment_is_of_normalized_features() -> None:
    """A projection head without statistics would see features as they are, all on one side."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(64, 128)) + 30).astype(np.float32)
    learner = swav()
    learner.refresh(lambda: Features(np.arange(64), features), (0, 0))
    hidden = learner.neck.first(torch.from_numpy(features)).detach()
    torch.testing.assert_close(learner.neck.norm.running_mean, hidden.mean(0), atol=1e-3, rtol=1e-3)
