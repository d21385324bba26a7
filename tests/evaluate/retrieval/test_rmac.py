"""R-MAC against a slow version that follows the paper's text with loops, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcluster.clustering.whitening import Whitening
from deepcluster.evaluate.retrieval.descriptors import RunningCovariance
from deepcluster.evaluate.retrieval.rmac import aggregate, pooled, region_max, regions

SHAPES = [(1, 1), (2, 2), (1, 7), (2, 5), (13, 13), (12, 16), (16, 12), (48, 64), (64, 48), (64, 20), (9, 64), (33, 32)]


def boxes(height: int, width: int, levels: int) -> list[tuple[int, int, int]]:
    """Top, left and side of each region, by floating point and one at a time."""
    short, long = min(height, width), max(height, width)
    best, extra = 9.0, 0
    if short != long:
        for place, steps in enumerate([2, 3, 4, 5, 6, 7]):
            distance = (long - short) / (steps - 1)
            shared = (short * short - short * distance) / (short * short)
            if abs(shared - 0.4) < best - 1e-12:
                best, extra = abs(shared - 0.4), place + 1
    found = []
    for level in range(1, levels + 1):
        side = int(np.floor(2 * short / (level + 1)))
        if side == 0:
            continue
        down = level + (extra if height > width else 0)
        across = level + (extra if width > height else 0)
        for i in range(down):
            for j in range(across):
                top = 0 if down == 1 else int(np.floor((height - side) / (down - 1) * i + 1e-9))
                left = 0 if across == 1 else int(np.floor((width - side) / (across - 1) * j + 1e-9))
                found.append((top, left, side))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [1, 3, 4])
def test_region_grid_matches_the_paper(shape: tuple[int, int], levels: int) -> None:
    ours = [(top, left, side) for side, tops, lefts in regions(*shape, levels) for top in tops for left in lefts]
    assert ours == boxes(*shape, levels)
    for top, left, side in ours:
        assert 0 <= top <= shape[0] - side and 0 <= left <= shape[1] - side


def test_numbers_of_regions() -> None:
    count = [len(tops) * len(lefts) for _, tops, lefts in regions(32, 32)]
    assert count == [1, 4, 9]  # a square map
    # 4:3, as photographs are: two squares at the first level, sharing 2/3; 2 x 3 and 3 x 4
    assert [(len(tops), len(lefts)) for _, tops, lefts in regions(48, 64)] == [(1, 2), (2, 3), (3, 4)]
    assert [side for side, _, _ in regions(48, 64)] == [48, 32, 24]
    # 2:1: overlaps of neighbors would be 0, 1/2, 2/3 ...: three squares
    assert next((len(tops), len(lefts)) for _, tops, lefts in regions(32, 64)) == (1, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_region_maxima_match_loops(shape: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = [maps[:, :, t : t + s, left : left + s].amax((2, 3)) for t, left, s in boxes(*shape, 3)]
    assert torch.equal(region_max(maps), torch.stack(expected, 1))


def test_pooling_matches_numpy() -> None:
    maps = torch.rand(3, 5, 6, 4, generator=torch.Generator().manual_seed(0)) - 0.2
    x = maps.double().numpy()
    raw = {
        "mac": x.max((2, 3)),
        "spoc": x.mean((2, 3)),
        "gem": (np.maximum(x, 0) ** 2.5).mean((2, 3)) ** (1 / 2.5),
    }
    for pool, expected in raw.items():
        found = pooled(maps, pool, power=2.5)
        assert found.shape == (3, 1, 5)
        np.testing.assert_allclose(found[:, 0], expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    assert torch.equal(pooled(torch.zeros(1, 4, 3, 3), "gem"), torch.zeros(1, 1, 4))
    assert pooled(maps, "rmac", levels=2).shape[1] == len(boxes(6, 4, 2))


def whitened_by_numpy(rows: np.ndarray, others: np.ndarray, dims: int) -> np.ndarray:
    center = others.mean(0)
    values, vectors = np.linalg.eigh((others - center).T @ (others - center))
    order = np.argsort(-values)[:dims]
    white = (rows - center) @ vectors[:, order] / np.sqrt(np.maximum(values[order], 1e-5 * values.max()))
    return np.asarray(white / np.linalg.norm(white, axis=1, keepdims=True))


@pytest.mark.parametrize("rank", [12, 6])
def test_whitened_descriptors_match_numpy(rank: int) -> None:
    """Also where the rows that the whitening is learned on span fewer directions than there are."""
    random = np.random.default_rng(0)
    mix = random.normal(size=(rank, 12)) * np.geomspace(1, 1e-2, rank)[:, None]
    others = random.normal(size=(300, rank)) @ mix + 0.5
    seen = RunningCovariance()
    for block in np.array_split(others, 7):  # as they come
        seen.add(torch.from_numpy(block))
    assert seen.count == 300
    np.testing.assert_allclose(seen.mean, others.mean(0), atol=1e-12)
    np.testing.assert_allclose(seen.scatter / 300, np.cov(others.T, bias=True), atol=1e-12)
    maps = torch.rand(2, 12, 9, 7, generator=torch.Generator().manual_seed(1))
    expected = []
    for one in maps.double().numpy():
        rows = np.stack([one[:, t : t + s, left : left + s].max((1, 2)) for t, left, s in boxes(9, 7, 3)])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        # where values are zero but for rounding, signs and turns are anyone's: sums of all 12 directions are not
        total = whitened_by_numpy(rows, others, 12 if rank == 6 else 8).sum(0)
        expected.append(total / np.linalg.norm(total))
    found = aggregate(pooled(maps, "rmac"), seen.whitening(12 if rank == 6 else 8)).numpy()
    np.testing.assert_allclose(found @ found.T, np.array(expected) @ np.array(expected).T, atol=2e-5)
    if rank == 12:  # directions are the same but for their signs
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-4)


def test_without_whitening_regions_are_added() -> None:
    rows = pooled(torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)), "rmac")
    total = rows.sum(1)
    np.testing.assert_allclose(aggregate(rows, None), total / total.norm(dim=1, keepdim=True), rtol=1e-6)


def test_small_variances_are_floored_and_not_zeroed() -> None:
    others = np.zeros((50, 3))
    others[:, 0] = np.random.default_rng(0).normal(size=50)
    seen = RunningCovariance()
    seen.add(torch.from_numpy(others))
    white = seen.whitening(3)
    least = float(white.explained_variance_[0] * 1e-5)
    assert white.components_[1:].norm(dim=1) == pytest.approx([least**-0.5] * 2, rel=1e-5)
    ours = Whitening(3).fit(others)
    assert not ours.components_[1:].any()  # clustering's way
