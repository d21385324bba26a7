"""Views equal torchvision's functional results for the same draws, and the draws have torchvision's distributions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepcluster.data import augment as data_augment
from deepcluster.data.augment import _kernel_works as kernel_works
from deepcluster.data.augment import augment, blur, center_crop
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import IMAGENET_MEAN, IMAGENET_STD, ORDERS, Draw, ViewGroup, draw
from deepcluster.errors import DeepClusterError
from deepcluster.random import seeded
from interpreter import GPU, INTERPRETED, NEEDS_GPU, passed_in_interpreter

LEVEL = 1 / 255


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter colors change by the kernels of GPUs, in all tests here."""
    if INTERPRETED:
        monkeypatch.setattr(data_augment, "has_triton", lambda device: True)
        monkeypatch.setattr(data_augment, "_kernel_works", lambda device: True)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_kernels_pass_these_tests_in_the_interpreter() -> None:
    """All of them; tests/test_interpreter.py runs two of them."""
    pytest.importorskip("triton", reason="this torch comes without Triton")
    assert passed_in_interpreter(__file__) >= 60


NOTHING = ViewGroup(size=24, crop_scale=None, flip=0, mean=(0, 0, 0), std=(1, 1, 1))
FULL = ViewGroup(
    size=24, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.3, mean=(0, 0, 0), std=(1, 1, 1)
)


def pictures(count: int, seed: int = 0, least: int = 18, most: int = 60) -> list[np.ndarray]:
    """Smooth pictures of many sizes: noise, enlarged."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        height, width = rng.integers(least, most, 2)
        noise = torch.from_numpy(rng.integers(0, 256, (3, 6, 6), dtype=np.uint8))
        smooth = F.resize(noise, [int(height), int(width)], antialias=True)
        result.append(np.ascontiguousarray(smooth.permute(1, 2, 0).numpy()))
    return result


def sizes(images: list[np.ndarray]) -> np.ndarray:
    return np.array([image.shape[:2] for image in images])


def chw(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def by_torchvision(image: np.ndarray, draws: Draw, k: int, views: ViewGroup) -> Tensor:
    """View k of the draw, one functional call after another; (3, S, S) float in [0, 1]."""
    top, left, height, width = draws.box[k].tolist()
    x: Tensor = F.resized_crop(chw(image), top, left, height, width, [views.size, views.size], antialias=True)
    if draws.flip[k]:
        x = F.horizontal_flip(x)
    x = x.float() / 255
    if views.moves:
        angle, right, down, scale, shear = draws.affine[k].tolist()
        x = F.affine(x, angle, [round(right), round(down)], scale, [shear, 0.0], F.InterpolationMode.BILINEAR)
    steps: list[Callable[[Tensor, float], Tensor]] = [
        F.adjust_brightness,
        F.adjust_contrast,
        F.adjust_saturation,
        F.adjust_hue,
    ]
    for step in draws.orders[k // 32]:
        x = steps[step](x, float(draws.factors[k, step]))
    if draws.gray[k]:
        x = F.rgb_to_grayscale(x, 3)
    if draws.sigma[k]:
        radius = max(1, round(views.size * 0.05))
        x = F.gaussian_blur(x, [2 * radius + 1] * 2, [float(draws.sigma[k])] * 2)
    return x


# A CPU resizes images up to 48 px by matrix products, and larger ones one by one.
LOOP, PRODUCTS = (49, 90), (18, 48)


@pytest.mark.parametrize("sides", [LOOP, PRODUCTS], ids=["one by one", "by products"])
@pytest.mark.parametrize("same", [True, False], ids=["one size", "many sizes"])
@pytest.mark.parametrize(
    "views",
    [
        NOTHING,
        replace(NOTHING, crop_scale=(0.08, 1.0), flip=0.5),
        replace(NOTHING, brightness=0.8),
        replace(NOTHING, contrast=0.8),
        replace(NOTHING, saturation=0.9),
        replace(NOTHING, hue=0.5),
        replace(NOTHING, gray=0.5),
        replace(NOTHING, blur=0.7),
        replace(NOTHING, rotate=30, translate=0.2, zoom=(0.7, 1.4), shear=20),
        FULL,
        replace(FULL, jitter=0.6, blur=0.5, rotate=10, translate=0.1, size=33),
    ],
    ids=[
        "resize",
        "crop",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "gray",
        "blur",
        "affine",
        "full",
        "everything",
    ],
)
def test_equal_to_torchvision(views: ViewGroup, same: bool, sides: tuple[int, int]) -> None:
    images = pictures(40, 0, *sides)
    if same:
        images = [np.ascontiguousarray(p[: sides[0], : sides[0] - 1]) for p in images]
    draws = draw(views, sizes(images), seeded(1, 2))
    made = augment(images, draws, views)
    expected = torch.stack([by_torchvision(image, draws, k, views) for k, image in enumerate(images)])
    # uint8 resizing rounds to a level; a strong factor or a far hue multiplies that level, more so without AVX2.
    assert (made - expected).abs().max() < 7 * LEVEL
    assert (made - expected).abs().mean() < 0.7 * LEVEL
    assert made.is_contiguous(memory_format=torch.channels_last) and made.dtype == torch.float32


@pytest.mark.parametrize(("size", "count"), [(24, 64), (120, 8), (150, 8)])
def test_colors_are_exact_where_no_resize_rounds(size: int, count: int) -> None:
    """In blocks of many images, of one, and of strips of one."""
    images = [np.ascontiguousarray(p[:size, :size]) for p in pictures(count, least=size, most=size + 40)]
    images[0][:] = 77  # grey: no hue
    images[1][:12] = 0
    images[2][:12] = 255
    strong = replace(FULL, size=size, crop_scale=None, flip=0, brightness=1, contrast=1, saturation=1, hue=0.5)
    for views in (strong, replace(strong, jitter=0.5), replace(strong, contrast=0), replace(strong, saturation=0)):
        draws = draw(views, sizes(images), seeded(4))
        expected = torch.stack([by_torchvision(image, draws, k, views) for k, image in enumerate(images)])
        torch.testing.assert_close(augment(images, draws, views), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("size", "sides"), [(24, PRODUCTS), (70, LOOP), (180, LOOP)])
def test_views_are_the_same_bits_whichever_process_makes_them(size: int, sides: tuple[int, int]) -> None:
    """In blocks of many images, of one, and of strips of one."""
    images = pictures(35, 0, *sides)
    views = replace(FULL, size=size, jitter=0.6, blur=0.2)
    draws = draw(views, sizes(images), seeded(6))
    whole = augment(images, draws, views)
    for cut in (13, 33):
        parts = augment(images[:cut], draws.part(0, cut), views), augment(images[cut:], draws.part(cut, 35), views)
        assert torch.equal(torch.cat(parts), whole)


def test_mean_color_differs_between_draws() -> None:
    """A jitter that leaves an image's mean color alone lets a network match views by that color."""
    image = (pictures(1, seed=5)[0] * [1.0, 0.6, 0.3]).astype(np.uint8)  # of a color that hue can turn
    views = ViewGroup(size=24, crop_scale=None, flip=0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    draws = draw(views, np.tile(image.shape[:2], (200, 1)), seeded(0))
    means = augment([image] * 200, draws, views).mean((2, 3))
    assert (means.std(0) > 0.15).all()
    for one in (replace(NOTHING, brightness=0.4), replace(NOTHING, hue=0.4)):
        means = augment([image] * 50, draw(one, np.tile(image.shape[:2], (50, 1)), seeded(0)), one).mean((2, 3))
        assert means.std(0).max() > 0.02


def test_crops_have_torchvisions_distribution() -> None:
    torch.manual_seed(0)
    for height, width in ((32, 32), (40, 120), (300, 20)):
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        crop = T.RandomResizedCrop(16)
        theirs = np.array([list(crop.make_params([image]).values()) for _ in range(3000)])
        ours = draw(ViewGroup(size=16), np.tile([height, width], (3000, 1)), seeded(1)).box
        assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
        np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.03 * max(height, width))
        np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.03 * max(height, width))


def test_draws_have_their_ranges_and_rates() -> None:
    views = ViewGroup(
        size=100, brightness=0.4, contrast=0.3, saturation=2.0, hue=0.1, jitter=0.8, gray=0.2, blur=0.5,
        rotate=15, translate=0.1, zoom=(0.9, 1.2), shear=5,
    )  # fmt: skip
    draws = draw(views, np.tile([50, 60], (20_000, 1)), seeded(0))
    jittered = ~(draws.factors == [1, 1, 1, 0]).all(1)
    rates = [draws.flip.mean(), jittered.mean(), draws.gray.mean(), (draws.sigma > 0).mean()]
    np.testing.assert_allclose(rates, [0.5, 0.8, 0.2, 0.5], atol=0.015)
    low, high = draws.factors[jittered].min(0), draws.factors[jittered].max(0)
    np.testing.assert_allclose(low, [0.6, 0.7, 0.0, -0.1], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1.3, 3.0, 0.1], atol=0.01)
    np.testing.assert_allclose(draws.affine.min(0), [-15, -10, -10, 0.9, -5], atol=0.02)
    np.testing.assert_allclose(draws.affine.max(0), [15, 10, 10, 1.2, 5], atol=0.02)
    assert {tuple(order) for order in draws.orders.tolist()} == set(ORDERS)


def test_multi_crop_equals_torchvision_group_after_group() -> None:
    large = replace(FULL, size=32, count=2, crop_scale=(0.14, 1.0))
    small = replace(FULL, size=16, count=4, crop_scale=(0.05, 0.14), blur=0.5)
    images = pictures(40)
    views = RandomViews(large, small)(images, seeded(8))
    assert [view.shape[2] for view in views] == [32, 32, 16, 16, 16, 16]
    alone = RandomViews(large)(images, seeded(8))
    assert all(torch.equal(one, both) for one, both in zip(alone, views, strict=False))  # no draw of theirs has changed
    generator = seeded(8)
    for view, group in zip(views, [large] * 2 + [small] * 4, strict=True):
        draws = draw(group, sizes(images), generator)
        expected = torch.stack([by_torchvision(image, draws, k, group) for k, image in enumerate(images)])
        assert (view - expected).abs().mean() < 0.7 * LEVEL
        assert group.crop_scale is not None
        shares = draws.box[:, 2:].prod(1) / sizes(images).prod(1)
        assert shares.min() > 0.7 * group.crop_scale[0] and shares.max() < 1.2 * group.crop_scale[1]


def test_one_image_changes_no_other() -> None:
    images = pictures(40)
    draws = draw(FULL, sizes(images), seeded(7))
    other = [*images[:3], pictures(1, seed=9)[0], *images[4:]]
    again = draw(FULL, sizes(other), seeded(7))
    keep = np.arange(40) != 3
    np.testing.assert_array_equal(draws.box[keep], again.box[keep])
    np.testing.assert_array_equal(draws.factors, again.factors)
    one, two = augment(images, draws, FULL), augment(other, again, FULL)
    torch.testing.assert_close(one[keep], two[keep], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sides", [LOOP, PRODUCTS], ids=["one by one", "by products"])
@pytest.mark.parametrize("size", [24, 32, 70])
def test_center_crop_equals_torchvision(size: int, sides: tuple[int, int]) -> None:
    short = size if size <= 64 else round(size * 256 / 224)
    images = [*pictures(12, 0, *sides), np.zeros((size, size, 3), np.uint8)]
    preset = T.Compose(
        [
            T.Resize(short, antialias=True),
            T.CenterCrop(size),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    expected = torch.stack([preset(chw(image)) for image in images])
    assert (center_crop(images, size) - expected).abs().max() < 1.1 * LEVEL / min(IMAGENET_STD)


def test_center_crop_of_images_of_its_size_is_exact() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
    expected = torch.stack([F.normalize(chw(i).float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD)) for i in images])
    torch.testing.assert_close(center_crop(images, 32), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 21, 40])
def test_blur_equals_torchvision(size: int) -> None:
    """Each image by its own sigma, down to sizes of which every pixel is at an edge."""
    x, sigma = torch.rand(4, 3, size, size, generator=seeded(0)), torch.tensor([0.1, 0.7, 1.3, 2.0])
    edge = 2 * min(max(1, round(size * 0.05)), size - 1) + 1
    expected = [F.gaussian_blur(image, [edge] * 2, [float(s)] * 2) for image, s in zip(x, sigma, strict=True)]
    torch.testing.assert_close(blur(x, sigma), torch.stack(expected), atol=1e-6, rtol=0)


def test_mistakes() -> None:
    for wrong in ({"flip": 2}, {"hue": 0.7}, {"size": 0}, {"crop_scale": (1, 0.5)}):
        with pytest.raises(DeepClusterError, match=next(iter(wrong))):
            ViewGroup(**wrong)


@NEEDS_GPU
def test_gpu_equals_cpu() -> None:
    images = pictures(70)
    views = replace(FULL, blur=0.5, rotate=10)
    draws = draw(views, sizes(images), seeded(3))
    cpu, gpu = augment(images, draws, views), augment(images, draws, views, "cuda").cpu()
    assert (cpu - gpu).abs().max() < 4 * LEVEL
    assert (center_crop(images, 48) - center_crop(images, 48, "cuda").cpu()).abs().max() < 1.1 * LEVEL / min(
        IMAGENET_STD
    )


@pytest.mark.skipif(not GPU and not INTERPRETED, reason="of the kernels")
def test_as_many_operations_for_many_images_as_for_few() -> None:
    """Whatever the orders of their jitter, and however many are blurred."""
    views = replace(FULL, size=8, blur=0.5, rotate=10)
    counts = []
    for count in (6, 6, 70):  # the first time a table is made for this size
        draws = draw(views, np.full((count, 2), 8), seeded(0))
        small, out = torch.zeros(count, 3, 8, 8), torch.zeros(count, 3, 8, 8)
        with Operations() as operations:  # type: ignore[no-untyped-call]
            data_augment._whole_batch(small, draws, views, out)
        counts.append(operations.count)
    assert counts[1] == counts[2] < 90


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch does, but for other views of the same memory."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(not GPU and not INTERPRETED, reason="of the kernels")
@pytest.mark.parametrize("part", ["factors", "orders", "gray"])
def test_a_wrong_kernel_is_noticed_before_first_use(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcluster.data import color_triton

    if INTERPRETED:
        monkeypatch.setattr(data_augment, "has_triton", lambda device: False)  # for what it is compared with
    works, device, right = kernel_works.__wrapped__, torch.device("cuda" if GPU else "cpu"), color_triton.recolor
    assert works(device)

    def wrong(x: Tensor, draws: Draw, group: ViewGroup, out: Tensor) -> None:
        right(x, replace(draws, **{part: np.roll(getattr(draws, part), 1, 0)}), group, out)

    monkeypatch.setattr(color_triton, "recolor", wrong)
    with pytest.warns(UserWarning, match="color jitter on .* goes on without Triton"):
        assert not works(device)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, pytest.param(90, marks=pytest.mark.slow)])
def test_the_kernels_compile_for_gpus_that_are_not_here(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton", reason="this torch comes without Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deepcluster.data import color_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = dict.fromkeys(("images", "plan", "means", "out"), "*fp32") | {"pixels": "i32", "SIZE": "constexpr"}
    for kernel in (color_triton._mean_luma, color_triton._recolor):
        signature = {name: kinds.get(name, "fp32") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {"SIZE": color_triton.PIXELS})
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 0 and made.metadata.shared <= 48 << 10
