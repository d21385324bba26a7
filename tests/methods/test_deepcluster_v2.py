"""DeepCluster-v2's memory, clusterings and loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepcluster.errors import DeepClusterError
from deepcluster.methods.deepcluster_v2 import DeepClusterV2
from deepcluster.methods.params import DeepClusterV2Params
from deepcluster.models.zoo import build_backbone
from deepcluster.types import Batch
from groups import STEP, batch, described, sgd


def v2(n: int = 64, k: int = 4, **values: object) -> DeepClusterV2:
    torch.manual_seed(0)
    params = DeepClusterV2Params(k=k, **({"feature_dim": 6, "hidden": 16, "clusterings": 2} | values))  # type: ignore[arg-type]
    return DeepClusterV2(build_backbone("convnet", image_size=12), params, n=n, make_optimizer=sgd)


def test_the_memory_is_full_before_the_first_step() -> None:
    learner, features = v2(), described(missing=(3, 9))
    found = learner.refresh(lambda: features, (0, 0))
    z = torch.from_numpy(learner.neck.transform(features.features))
    for view in range(2):
        torch.testing.assert_close(learner.memory[features.index, view], z)
    assert not learner.memory[[3, 9]].any()
    assert np.flatnonzero(found.assignment < 0).tolist() == [3, 9]
    again = learner.refresh(lambda: pytest.fail("features are extracted once"), (0, 1))
    assert np.flatnonzero(again.assignment < 0).tolist() == [3, 9]
    assert 3 not in learner.order(62, torch.Generator().manual_seed(0)).tolist()


def test_prototypes_are_the_mean_directions_of_the_clusters_of_one_view() -> None:
    learner = v2(clusterings=3)
    learner.refresh(described, (0, 0))
    learner.memory.copy_(F.normalize(torch.randn(64, 2, 6, generator=torch.Generator().manual_seed(0)), dim=2))
    found = learner.refresh(described, (0, 1))
    for number in range(3):
        view = learner.memory[:, number % 2]
        label = learner.assignments[number]
        means = torch.stack([F.normalize(view[label == cluster].mean(0), dim=0) for cluster in range(4)])
        # k-means may stop before it has converged: labels are those of the prototypes, which may be a step older
        torch.testing.assert_close(label, (view @ learner.prototypes[number].T).argmax(1))
        assert (means * learner.prototypes[number]).sum(1).min() > 0.9
        torch.testing.assert_close(learner.prototypes[number].norm(dim=1), torch.ones(4))
    np.testing.assert_array_equal(found.assignment, learner.assignment)
    torch.testing.assert_close(found.centroids, learner.prototypes[0])
    assert (learner.assignments[0] != learner.assignments[2]).any()  # other seeds


@pytest.mark.parametrize("views", [1, 2, 3])
def test_first_step_has_a_finite_loss_and_a_gradient_everywhere(views: int) -> None:
    learner = v2()
    learner.refresh(described, (0, 0))
    shown = batch(views=views)
    loss = learner.loss(shown, STEP)["loss"]
    torch.autograd.backward(loss)
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad and name != "neck.first.bias":  # a bias before batch-norm has no effect
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not learner.prototypes.requires_grad
    label, terms = learner.assignments[:, shown.index], []
    for view in shown.views:
        z = F.normalize(learner.neck(learner.backbone(view)), dim=1)
        terms += [F.cross_entropy(z @ learner.prototypes[j].T / 0.1, label[j]) for j in range(2)]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-4, rtol=1e-4)


def test_only_large_views_are_remembered_each_in_its_place() -> None:
    learner = v2()
    learner.refresh(described, (0, 0))
    shown = batch(views=4)
    views = tuple(view[..., :8, :8] if number > 1 else view for number, view in enumerate(shown.views))
    before = learner.memory.clone()
    shown = Batch(shown.index, views, shown.position, shown.whole)
    learner.loss(shown, STEP)
    learner.after_step(shown)
    for number in range(2):
        z = F.normalize(learner.neck(learner.backbone(views[number])), dim=1)
        torch.testing.assert_close(learner.memory[:8, number], z.detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(learner.memory[8:], before[8:]) and not torch.equal(learner.memory[:8], before[:8])


def test_one_large_view_fills_all_places_and_the_last_occurrence_stays() -> None:
    learner = v2()
    learner.refresh(described, (0, 0))
    learner._seen = [torch.eye(6)[:3]]
    learner.after_step(Batch(torch.tensor([5, 7, 5]), (), torch.arange(3), 3))
    for place in range(2):
        assert torch.equal(learner.memory[5, place], torch.eye(6)[2])
        assert torch.equal(learner.memory[7, place], torch.eye(6)[1])


def test_fewer_images_than_clusters_get_a_sentence() -> None:
    with pytest.raises(DeepClusterError, match="64 images for 65 clusters"):
        v2(k=65).refresh(described, (0, 0))
