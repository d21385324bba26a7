"""Average precision against loops, scikit-learn, hand-worked cases and closed forms, on real ground truth too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from deepcluster.evaluate.retrieval import ranking
from deepcluster.evaluate.retrieval.ground_truth import GroundTruth, read_ground_truth
from deepcluster.evaluate.retrieval.ranking import (
    precision_at,
    relevant_ranks,
    score_rankings,
    step_ap,
    trapezoid_ap,
)

REAL = ("oxford5k", "paris6k", "roxford5k", "rparis6k", "holidays")


def walked(order: np.ndarray, positive: set[int], ignored: set[int]) -> tuple[float, float, dict[int, float]]:
    """Trapezoid and step AP and precisions, walking down the ranking image by image, as the sets' papers tell it."""
    found = place = 0
    recall = area = steps = 0.0
    precision = 1.0
    places = []
    for image in order.tolist():
        if image in ignored:
            continue
        place += 1
        if image in positive:
            found += 1
            steps += found / place
            places.append(place)
        now, here = found / len(positive - ignored), found / place
        area += (now - recall) * (precision + here) / 2
        recall, precision = now, here
    firsts = {}
    for k in (1, 5, 10):
        top = min(k, places[-1])
        firsts[k] = sum(place <= top for place in places) / top
    return area, steps / found, firsts


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_matches_a_loop_and_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(5, 60))
    similarity = random.permutation(n).astype(np.float32)
    mixed = random.permutation(n)
    positive, ignored = mixed[: 1 + n // 5], mixed[n // 6 : n // 2]  # the two sets overlap
    ranks = relevant_ranks(similarity, positive, ignored)
    area, steps, firsts = walked(np.argsort(-similarity), set(positive.tolist()), set(ignored.tolist()))
    assert trapezoid_ap(ranks) == pytest.approx(area, abs=1e-12)
    assert step_ap(ranks) == pytest.approx(steps, abs=1e-12)
    assert {k: precision_at(ranks, k) for k in firsts} == pytest.approx(firsts)
    counted = np.setdiff1d(np.arange(n), ignored)
    theirs = average_precision_score(np.isin(counted, positive), similarity[counted])
    assert step_ap(ranks) == pytest.approx(theirs, abs=1e-12)


def test_average_precision_matches_examples_by_hand() -> None:
    # right, wrong, right: (1 + 1) / 2, then (1/2 + 2/3) / 2
    ranks = relevant_ranks(np.array([0.9, 0.5, 0.3]), np.array([0, 2]), np.array([], int))
    assert ranks.tolist() == [0, 2]
    assert trapezoid_ap(ranks) == pytest.approx(19 / 24) and step_ap(ranks) == pytest.approx(5 / 6)
    # wrong, right: (0 + 1/2) / 2
    assert trapezoid_ap(np.array([1])) == 0.25 and step_ap(np.array([1])) == 0.5
    # junk before the right image is as if it were not there
    assert relevant_ranks(np.array([3.0, 2, 1]), np.array([2]), np.array([0, 1])).tolist() == [0]
    # a query with two right images, at 1 and 3: two of the first three, whether 5 or 10 are asked for
    assert [precision_at(np.array([0, 2]), k) for k in (1, 2, 5, 10)] == [1, 0.5, 2 / 3, 2 / 3]


def test_average_precision_matches_closed_forms() -> None:
    count, wrong = 7, 30
    i = np.arange(count)
    assert trapezoid_ap(i) == step_ap(i) == precision_at(i, 5) == 1
    assert step_ap(i + wrong) == pytest.approx(((i + 1) / (wrong + i + 1)).mean())
    assert trapezoid_ap(i + wrong) == pytest.approx(((i / (wrong + i) + (i + 1) / (wrong + i + 1)) / 2).mean())
    assert step_ap(2 * i + 1) == 0.5  # every second, wrong first
    assert trapezoid_ap(2 * i + 1) == pytest.approx((i / (2 * i + 1)).mean() / 2 + 0.25)
    assert step_ap(2 * i) == pytest.approx(((i + 1) / (2 * i + 1)).mean())


def test_irrelevant_images_come_first_among_equal_similarities() -> None:
    same = np.zeros(10, np.float32)
    for positive in ([0, 1], [8, 9]):  # however the files are ordered
        assert relevant_ranks(same, np.array(positive), np.array([], int)).tolist() == [8, 9]


def test_no_relevant_image_gives_nan() -> None:
    none = np.array([], int)
    assert np.isnan([trapezoid_ap(none), step_ap(none), precision_at(none, 5)]).all()


def by_columns(
    truth: GroundTruth, similarity: np.ndarray, **options: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores of given similarities (N, Q): each query is an axis."""
    return score_rankings(truth, similarity, np.eye(len(truth.queries), dtype=np.float32), **options)


@pytest.mark.parametrize("name", REAL)
def test_perfect_and_worst_rankings_of_real_ground_truth(name: str, shared_data: Path) -> None:
    truth = read_ground_truth(shared_data / "retrieval" / f"gnd_{name}.mat")
    n, q = len(truth.names), len(truth.queries)
    for ending, (right, junk) in truth.measures.items():
        perfect = np.zeros((n, q), np.float32)
        for query in range(q):
            perfect[truth.union(right, query), query] = 1
            perfect[truth.union(junk, query), query] = 2  # junk before everything
        assert by_columns(truth, perfect)[0][f"map{ending}"] == 1
        last, singles = by_columns(truth, -perfect)
        expected = []
        for query in range(q):
            i = np.arange(len(np.setdiff1d(truth.union(right, query), truth.union(junk, query))))
            wrong = n - len(i) - len(truth.union(junk, query))
            expected.append(((i / (wrong + i) + (i + 1) / (wrong + i + 1)) / 2).mean() if len(i) else np.nan)
        assert last[f"map{ending}"] == pytest.approx(np.nanmean(expected), rel=1e-9)
        assert len(singles) == q


@pytest.mark.parametrize("name", REAL)
def test_random_rankings_of_real_ground_truth(name: str, shared_data: Path) -> None:
    truth = read_ground_truth(shared_data / "retrieval" / f"gnd_{name}.mat")
    similarity = np.random.default_rng(0).normal(size=(len(truth.names), len(truth.queries))).astype(np.float32)
    found, single = by_columns(truth, similarity)
    for ending, (right, junk) in truth.measures.items():
        aps = []
        for query in range(0, len(truth.queries), 9):
            positive = set(truth.union(right, query).tolist())
            if positive:
                order = np.argsort(-similarity[:, query], kind="stable")
                area, _, firsts = walked(order, positive, set(truth.union(junk, query).tolist()))
                assert single[query][f"ap{ending}"] == pytest.approx(area, abs=1e-9)
                if truth.kind == "revisited":
                    assert single[query][f"p10{ending}"] == pytest.approx(firsts[10])
        aps = [one[f"ap{ending}"] for one in single if one[f"right{ending}"]]
        assert found[f"map{ending}"] == pytest.approx(np.mean(aps)) and found[f"map{ending}"] < 0.2
    assert ("mp10_medium" in found) == (truth.kind == "revisited")


def small(kind: str = "groups") -> GroundTruth:
    names = tuple("abcdef")
    ok = tuple(np.array(rows) for rows in ([0, 1], [0, 1], [2, 3, 4], [2, 3, 4], [2, 3, 4]))
    junk = tuple(np.array([query]) for query in range(5))
    return GroundTruth("small", kind, names, names[:5], None, {"ok": ok, "junk": junk})


def test_blocks_change_nothing_and_queries_without_relevant_images_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(6, 4)).astype(np.float32)
    whole = score_rankings(small(), rows, rows[:5])
    monkeypatch.setattr(ranking, "BLOCK", 7)
    assert score_rankings(small(), rows, rows[:5]) == whole
    one = small().subset(np.array([True, False, True, True, True, True]), np.array([True, False, True, True, True]))
    found, single = score_rankings(one, rows[[0, 2, 3, 4, 5]], rows[[0, 2, 3, 4]])
    assert np.isnan(single[0]["ap"]) and single[0]["right"] == 0
    assert found["map"] == pytest.approx(np.mean([told["ap"] for told in single[1:]]))


def test_query_expansion_is_the_mean_of_the_query_and_what_it_found() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(6, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    truth = small()
    again = []
    for query in range(5):
        similarity = rows @ rows[query]
        similarity[query] = -np.inf  # not its own image
        near = np.argsort(-similarity)[:2]
        mean = (rows[query] + rows[near].sum(0)) / 3
        again.append(mean / np.linalg.norm(mean))
    expected = score_rankings(truth, rows, np.stack(again))
    found = score_rankings(truth, rows, rows[:5], expansion=2)
    assert found[0] == pytest.approx(expected[0])
    assert found[0] != score_rankings(truth, rows, rows[:5])[0]
    own = score_rankings(small("classic"), rows, rows[:5], expansion=2)  # finds itself first, as Oxford's queries do
    assert own[1][0]["ap"] >= 0
