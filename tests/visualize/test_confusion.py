"""The picture of clusters against labels."""

from __future__ import annotations

import numpy as np
import pytest

from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.confusion import by_main_class, confusion_figure, confusion_shares
from deepcluster.visualize.purity import class_table

ASSIGNMENT = np.array([0, 0, 0, 5, 5, 7, 7, 7, 7, -1])
LABELS = np.array([1, 1, 0, 0, 0, 1, 2, 2, -1, 2])


def test_clusters_are_ordered_by_their_main_class() -> None:
    table = by_main_class(class_table(ASSIGNMENT, LABELS))
    assert table.tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 2]]
    share = confusion_shares(table)
    np.testing.assert_allclose(share, np.array([[2, 1, 0], [0, 2, 1], [0, 0, 3]]) / 3)


def test_pure_clusters_come_before_mixed_ones_of_their_class() -> None:
    table = by_main_class(class_table(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 0])))
    assert table.tolist() == [[2, 2], [0, 1]]


def test_a_figure_with_few_and_with_many_classes() -> None:
    few = confusion_figure(ASSIGNMENT, LABELS, ["cat", "<b>dog</b>", "o$ne$"])
    assert style.png(few).startswith(b"\x89PNG")
    assert [text.get_text() for text in few.axes[1].texts] == ["67", "33", "67", "33", "100"]
    random = np.random.default_rng(0)
    many = confusion_figure(random.integers(0, 200, 3000), random.integers(0, 90, 3000), [str(n) for n in range(90)])
    assert len(many.axes[0].get_yticklabels()) == 40 and "40 largest of 90" in many.get_suptitle()


def test_images_without_cluster_and_label_are_an_error() -> None:
    with pytest.raises(DeepClusterError, match="No image has both"):
        class_table(np.array([-1, 0]), np.array([0, -1]))
