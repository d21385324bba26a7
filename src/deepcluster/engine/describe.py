"""Features of images by a network that is not trained: pretrained, or fitted to the images themselves in seconds.

They are written in parts, and an interrupted call goes on after the last finished part.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deepcluster.data.cache import Pixels
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.engine import run_folder
from deepcluster.engine.device import pick_device
from deepcluster.engine.log import Bar, Screen
from deepcluster.engine.model import bare_model
from deepcluster.engine.patches import IMAGES, fit_patches
from deepcluster.engine.run import load_subject
from deepcluster.engine.signals import stop_signals
from deepcluster.engine.subject import Subject
from deepcluster.errors import BadImage, DeepClusterError, Interrupted
from deepcluster.features.table import BATCH, write_part, write_parts
from deepcluster.io import write_safetensors
from deepcluster.models.hugging_face import HUB
from deepcluster.models.patches import PatchNet
from deepcluster.models.pretrained import choose_backbone, is_fitted
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import read_tensors

FEATURES = "features"
"""Folder of the features in the run folder."""
FITTED = "patches.safetensors"
"""What was fitted, in the run folder: an interrupted run goes on with it."""
PART = 4096
"""Images in each part of the features: what an interrupted run does again, a minute or two on a laptop."""
SMALLEST, LARGEST = 96, 224
"""Pixels, bounds of the size that is chosen: a network trained on photos sees little in images of 32 pixels, and
beyond 224 features gain little for their cost."""
OVER = [0, -1]
"""In place of the first and last image of those that are to be described: there are no more."""
WIDTH = 64
"""Dimensions that the features are reduced to by PCA; docs/groups.md compares embeddings."""


def open_describer(
    source: ImageSource, folder: Path, backbone: str, *, image_size: int | None, device: str, screen: Screen
) -> tuple[str, Subject]:
    """The network that describes images, and its name, for a backbone and image size as `engine.cluster.cluster_images`
    takes them; one that is fitted to the images is not fitted yet."""
    name, sentence = choose_backbone(backbone)
    screen.print(sentence)
    if image_size is None and not (name.startswith(HUB) or Path(name).exists()):
        image_size = fitting_size(source, name)
    if not is_fitted(name):
        return name, load_subject(name, image_size=image_size, device=device)
    with torch.random.fork_rng(devices=[]):
        model = bare_model(build_backbone(name, image_size=image_size or LARGEST))
    return name, Subject(name, model, pick_device(device), folder)


@contextmanager
def described(
    name: str,
    subject: Subject,
    pixels: Pixels,
    folder: Path,
    screen: Screen,
    *,
    seed: int = 0,
    part: int = PART,
    group: ProcessGroup = SINGLE,
) -> Iterator[tuple[list[int], Bar]]:
    """The features of all images are in `folder / FEATURES`; gives the bad rows, and the bar for what follows. Of
    several processes that share the images, the first one writes, and it alone knows the bad rows. Interrupted on
    Ctrl-C or SIGTERM: the parts that are finished are kept."""
    if is_fitted(name):
        with group.collective_section():
            if group.is_first:
                _fit(subject, pixels, folder / FITTED, seed, screen)
        for weight in subject.backbone.state_dict().values():
            group.broadcast_(weight)
    with stop_signals() as stopped, screen.bar("features", len(pixels)) as bar:

        def check(images: int) -> None:
            described, stops = group.sum_(torch.tensor([images, int(stopped())])).tolist()
            bar(described)
            if stops:
                raise Interrupted

        yield _write_features(subject, pixels, folder, part, bar, check, group), bar


def part_writer(
    model: str, data: str, tap: str | None, image_size: int | None, device: str, weights: str, count: int
) -> Callable[..., int]:
    """What writes parts of the features of `count` images by a network, see `write_part`, in a process of its own;
    DeepClusterError where they are another network, or other images, here."""
    subject = load_subject(model, device=device, image_size=image_size)
    subject.cache_gb, subject.workers = 0.0, 1  # each image is looked at once, and each core has a process
    pixels = subject.pixels(data)
    for what, same in ((model, digest(subject.backbone) == weights), (data, len(pixels) == count)):
        if not same:
            raise DeepClusterError(
                f"{what} is not the same on {platform.node()}: put it on a disk that all machines see."
            )
    extract = partial(subject.model.features, pixels, tap=tap, device=subject.device, batch_size=BATCH)
    return partial(write_part, extract)


def _fit(subject: Subject, pixels: Pixels, file: Path, seed: int, screen: Screen) -> None:
    """Fits a network of patches to the images themselves; what is in `file` was fitted to the same images before."""
    if file.exists():
        _, tensors = read_tensors(file, advice="delete it, and the network is fitted again")
        subject.backbone.load_state_dict(tensors)
        return
    with stop_signals() as stopped, screen.bar("patches", 2 * min(len(pixels), IMAGES)) as bar:

        def check(images: int) -> None:
            bar(images)
            if stopped():
                raise Interrupted

        fit_patches(subject.backbone, pixels, seed=seed, device=subject.device, check=check)
    write_safetensors(file, subject.backbone.state_dict(), {})


def fitting_size(source: ImageSource, name: str) -> int:
    """Side in pixels at which a network of this name sees images best: about their own, since enlarging them only
    costs, and a multiple of a transformer's patches."""
    sides = []
    for index in np.unique(np.linspace(0, len(source) - 1, 32).astype(int)).tolist():
        try:
            sides.append(min(source.read(index, LARGEST).shape[:2]))
        except BadImage:
            continue
    side = float(np.median(sides)) if sides else LARGEST
    if is_fitted(name):
        return int(np.clip(side, 16, SMALLEST))
    step = 14 if "patch14" in name else 32
    return int(np.clip(-(-side // step) * step, -(-SMALLEST // step) * step, LARGEST // step * step))


def reduced_width(subject: Subject) -> int:
    """Dimensions that its features are reduced to before they are grouped: none less of patches, whose directions are
    scaled already."""
    return subject.backbone.dim if isinstance(subject.backbone.trunk, PatchNet) else WIDTH


def _write_features(
    subject: Subject,
    pixels: Pixels,
    folder: Path,
    part: int,
    skipped: Callable[[int], None],
    check: Callable[[int], None],
    group: ProcessGroup,
) -> list[int]:
    """The features of all images in parts, those that are there already left as they are; gives the bad rows.

    The first process says which images come next, all of them describe some batches of these, and the first one writes.
    """

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if group.is_first:
            group.broadcast_(torch.from_numpy(images[[0, -1]]))
        index, features = subject.model.features(
            pixels, images, device=subject.device, batch_size=BATCH, check=check, group=group, multiple=BATCH
        )
        return group.gather_array(index), group.gather_array(features)

    if not group.is_first:
        while (span := group.broadcast_(torch.zeros(2, dtype=torch.int64)).tolist()) != OVER:
            extract(np.arange(span[0], span[1] + 1))
        return []
    source, table = pixels.source, folder / FEATURES
    about = {
        "model": subject.name,
        "data": run_folder.absolute(source.name),
        "source_fingerprint": source.fingerprint(),
        "tap": None,
        "weights": digest(subject.backbone),
        "image_size": subject.image_size,
    }

    parts = -(-len(pixels) // part)
    bad = write_parts(extract, len(pixels), table, about, parts=parts, skipped=skipped)[1]
    group.broadcast_(torch.tensor(OVER))
    pixels.gather(np.setdiff1d(bad, list(pixels.bad)).astype(np.int64))  # why those of earlier parts are bad
    return bad
