"""The step of k-means by Triton against float64 and integers, and against the step of the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepcluster.clustering import assign
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.points import Points
from deepcluster.clustering.tally import ClusterSums, Tallies, iteration_stats, means_of
from deepcluster.exact_sum import round_
from deepcluster.features.block_reader import Rows
from deepcluster.features.parallel import keep_over_rows
from interpreter import GPU, INTERPRETED, NEEDS_GPU

pytest.importorskip("triton", reason="this torch comes without Triton")
from deepcluster.clustering import assign_triton
from deepcluster.clustering.assign_triton import FusedSearch, FusedStep


@pytest.fixture
def device() -> torch.device:
    if not GPU and not INTERPRETED:
        pytest.skip("no GPU; tests/test_interpreter.py runs this in Triton's interpreter")
    return torch.device("cuda" if GPU else "cpu")


def check(
    x: Tensor, rounds: list[Tensor], device: torch.device, *, weight: Tensor | None = None, exact: bool, chunk: int = 0
) -> None:
    """A step for each (K, D) of `rounds` over the rows x (N, D): labels, and sums, counts and moved to the last bit.

    Args:
        exact: all products are exact in float32, so that labels are, too, and of equally near centroids the first.
    """
    k = len(rounds[0])
    points = Points(Rows(x.to(device)), chunk=chunk or None, weight=weight)
    ours, unit = FusedStep(points, k, points.moments.unit), points.moments.unit
    on_cpu = Points(Rows(x), chunk=chunk or None, weight=weight)
    theirs = ClusterSums(on_cpu, k, unit)  # the sums of the CPU by the labels found here
    w = np.ones(len(x)) if on_cpu.weight is None else on_cpu.weight.numpy()
    # whole multiples of the unit, added up as Python's integers have it
    whole = np.rint(x.double().numpy() * w[:, None] / unit).astype(np.int64)
    total = np.zeros((k, x.shape[1]))
    for c in rounds:
        tally, labels = ours.update(points, c.to(device), False), ours.labels.cpu()

        def known(block: Tensor, start: int, labels: Tensor = labels) -> Tensor:
            return labels[start : start + len(block)]

        expected = theirs.update(on_cpu, known)
        assert torch.equal(tally.flat.cpu(), expected.flat)

        score = x.double() @ c.double().T - c.double().square().sum(1) / 2
        best, first = score.max(1).values, score.argmax(1)
        if exact:
            assert torch.equal(labels, first)
        short = best - score.gather(1, labels[:, None])[:, 0]
        assert (short <= 2.0**-22 * x.shape[1] * (x.abs().amax(1) + c.abs().max()) * c.abs().max()).all()

        sums = np.zeros((k, x.shape[1]), np.int64)
        np.add.at(sums, labels.numpy(), whole)
        total += tally.sums.cpu().numpy()  # each step adds to the last one's sums
        np.testing.assert_array_equal(total, sums * unit)
        np.testing.assert_array_equal(tally.counts.cpu(), np.bincount(labels, w, minlength=k))


@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(1, 1, 1), (1, 64, 300), (1000, 1, 2), (1000, 3, 17), (300, 64, 17), (257, 130, 300), (300, 130, 1)],
)
def test_whole_numbers_give_the_same_clusters_ties_included(n: int, d: int, k: int, device: torch.device) -> None:
    """Rows move, several centroids are the same, and some are too far away for any row."""
    rng = np.random.default_rng(n + d + k)
    x = torch.from_numpy(rng.integers(-4, 5, (n, d)).astype(np.float32))
    rounds = [torch.from_numpy(rng.integers(-4, 5, (k, d)).astype(np.float32)) for _ in range(2)]
    for c in rounds:
        c[k // 2 :] = c[: k - k // 2].flip(0)
        c[k - k // 4 :] = 50
    check(x, [*rounds, rounds[-1]], device, exact=True)


@pytest.mark.parametrize(("n", "d", "k", "scale"), [(500, 20, 33, 1.0), (200, 70, 140, 1e-6), (300, 5, 3, 1e5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_any_numbers_give_the_nearest_and_exact_sums(
    n: int, d: int, k: int, scale: float, weighted: bool, device: torch.device
) -> None:
    rng = np.random.default_rng(n)
    x = torch.from_numpy((scale * rng.standard_normal((n, d))).astype(np.float32))
    weight = torch.from_numpy(rng.exponential(size=n) * (rng.random(n) < 0.8)) if weighted else None
    check(x, [x[rng.permutation(n)[:k]] for _ in range(3)], device, weight=weight, exact=False)


def test_blocks_and_strides_change_nothing(device: torch.device) -> None:
    rng = np.random.default_rng(0)
    wide = torch.from_numpy(rng.integers(-3, 4, (1100, 22)).astype(np.float32))
    rounds = [torch.from_numpy(rng.integers(-3, 4, (9, 11)).astype(np.float32)) for _ in range(2)]
    for x in (wide[:, ::2], wide.T.contiguous().T[:, :11]):
        check(x, [rounds[0], rounds[1].T.contiguous().T], device, exact=True, chunk=1024)


def test_rows_are_rounded_like_on_the_cpu(device: torch.device) -> None:
    """Every row alone in its cluster: halves of the unit go to the even multiple, and tiny numbers to none."""
    n, unit = 400, 2.0**-3
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(-40, 41, (n, 6)).astype(np.float32)) * 2.0**-4
    x[:, 1] = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    x[:, 2] = torch.from_numpy((2.0 ** rng.uniform(-149, -100, n)).astype(np.float32))
    x[:, 3] = torch.nextafter(x[:, 0], torch.tensor(9.0))
    x[:, 4] = -torch.nextafter(torch.tensor(2.0**-4), torch.tensor(0.0))
    x[:, 5] = 4096.0 * torch.arange(n)  # which tells the rows apart
    step = FusedStep(points := Points(Rows(x.to(device))), n, unit)
    tally = step.update(points, x.to(device), False)
    assert torch.equal(step.labels.cpu(), torch.arange(n))
    assert torch.equal(tally.sums.cpu(), round_(x.double(), unit))


@NEEDS_GPU
def test_a_row_that_holds_nan_gets_a_cluster_that_exists() -> None:
    """`predict` refuses it by its distance, for which its centroid is looked up. The interpreter finds none."""
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    x[7], x[8, 2], x[9] = torch.nan, torch.inf, -3e38
    found = FusedSearch(x[100:103].cuda())(x.cuda()).cpu()
    assert ((found >= 0) & (found < 3)).all()
    finite = torch.cat([x[:7], x[10:]])
    assert torch.equal(torch.cat([found[:7], found[10:]]), torch.cdist(finite, x[100:103]).argmin(1))


def mixture() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(14, 6))[rng.integers(14, size=500)] + 0.5 * rng.normal(size=(500, 6))).astype(np.float32)


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {},
    "spherical": {"spherical": True},
    "far from zero": {"n_clusters": 9},
    "empty clusters": {"n_clusters": 120, "max_iter": 5},
}


@pytest.mark.parametrize("name", FITS)
def test_fit_and_predict_equal_those_of_the_cpu(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.from_numpy(mixture())
    weight = np.random.default_rng(4).integers(0, 4, len(x)) if name == "weighted" else None
    if name == "far from zero":
        x += 50
    start = x[:1].repeat(120, 1) if name == "empty clusters" else x
    arguments: dict[str, Any] = {"n_clusters": 16, "max_iter": 9, "precision": "float32", **FITS[name]}
    arguments["init"] = start[: arguments["n_clusters"]].numpy()
    theirs = KMeans(**arguments, random_state=0).fit(x, sample_weight=weight)
    if INTERPRETED:  # the choice that GPUs lead to
        monkeypatch.setattr(assign, "fused", lambda device, half: assign_triton)
    ours = KMeans(**arguments, random_state=0).fit(x.to(device), sample_weight=weight)
    assert theirs.n_iter_ > 4 and ours.n_iter_ == theirs.n_iter_
    assert torch.equal(ours.labels_.cpu(), theirs.labels_)
    centroids = ours.cluster_centers_.cpu()
    if INTERPRETED or name in ("plain", "weighted"):
        assert torch.equal(centroids, theirs.cluster_centers_)
        assert ours.objectives_ == (theirs.objectives_ if INTERPRETED else pytest.approx(theirs.objectives_, rel=1e-9))
    else:  # a GPU's lengths and means of all rows may differ in their last bits
        torch.testing.assert_close(centroids, theirs.cluster_centers_)
    assert torch.equal(ours.predict(x.to(device)).cpu(), theirs.predict(x))


def test_the_check_before_first_use_notices_a_wrong_step(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    works = assign_triton.works.__wrapped__
    assert works(device, False)
    monkeypatch.setitem(assign_triton.TILE, torch.float32, (128, 128, 3, 8))  # no width that Triton has
    with pytest.warns(UserWarning, match="goes on without Triton"):
        assert not works(device, False)
    monkeypatch.undo()
    monkeypatch.setattr("math.frexp", lambda value: (0.5, 2))
    with pytest.warns(UserWarning, match="what it computes is wrong"):
        assert not works(device, False)


@NEEDS_GPU
def test_bfloat16_equals_products_of_rounded_numbers() -> None:
    """Triton's interpreter takes the bits of bfloat16 for integers."""
    x = torch.randn(3000, 72, generator=torch.Generator().manual_seed(0))
    c, rounded = x[:200], x.bfloat16().double()
    score = rounded @ rounded[:200].T - rounded[:200].square().sum(1) / 2
    found = FusedSearch(c.cuda(), half=True)(x.cuda()).cpu()
    assert (score.max(1).values - score.gather(1, found[:, None])[:, 0] < 1e-3).all()
    assert (found == score.argmax(1)).float().mean() > 0.999
    KMeans(50, precision="bfloat16", random_state=0).fit(x.cuda())


@NEEDS_GPU
def test_a_step_never_waits_for_the_gpu() -> None:
    x = torch.from_numpy(mixture())
    points = Points(Rows(x.numpy(), "cuda"), chunk=1024)
    points.hold()
    for held in (points, points.about(points.moments.mean.float())):
        held.hold()
        unit, centroids = held.moments.unit, held.take(torch.arange(16))
        tallies = Tallies(keep_over_rows(FusedStep, [held], 16, unit), held.shard.group)
        tallies.update(centroids, False)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                found = tallies.update(centroids, False)
                centroids = means_of(found.sums, found.counts, centroids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        iteration_stats(found, centroids, 1.0)


@NEEDS_GPU
def test_a_table_is_uploaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, read, upload = mixture(), [], Rows._float32

    def uploaded(rows: Rows, part: Any) -> Tensor:
        read.append(len(part))
        return upload(rows, part)

    monkeypatch.setattr(Rows, "_float32", uploaded)
    run = KMeans(9, max_iter=8, init=x[:9], device="cuda").fit(x)
    assert run.n_iter_ > 4 and sum(read) == len(x) + 9
    np.testing.assert_array_equal(run.labels_, KMeans(9, max_iter=8, init=x[:9], precision="float32").fit(x).labels_)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("capability", "half"),
    [(80, False)] + [pytest.param(*each, marks=pytest.mark.slow) for each in ((80, True), (90, False), (90, True))],
)
def test_the_kernel_compiles_for_gpus_that_are_not_here(
    capability: int, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = dict.fromkeys(("row_stride", "n", "k", "dim", "exponent", "weight_exponent"), "i32")
    kinds |= {"rows": "*fp32", "centroids": "*bf16" if half else "*fp32", "bias": "*fp32", "weights": "*fp64"}
    kinds |= dict.fromkeys(("labels", "sums", "counts", "moved"), "*i64")
    rows, width, depth, warps = assign_triton.TILE[torch.bfloat16 if half else torch.float32]
    fixed = {"column_stride": 1, "SUMS": True, "WEIGHTED": True, "ROWS": rows, "WIDTH": width, "DEPTH": depth}
    kernel = assign_triton._assign
    signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, fixed)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    code = made.asm["ptx"]
    assert len(made.asm["cubin"]) > 0 and made.metadata.shared <= 163 << 10
    assert re.search(r"(atom|red)\S*\.add\.u64", code)
    assert "tf32" not in code and ("mma" in code) == half
