"""`deepcluster evaluate RUN retrieval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deepcluster.cli.protocols.common import Common
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True, kw_only=True)
class Retrieval(Common):
    """Mean average precision of finding images of the same thing, by R-MAC or pooled features."""

    ground_truth: str | None = None
    """gnd_oxford5k.mat, gnd_paris6k.mat, gnd_roxford5k.mat, gnd_rparis6k.mat or gnd_holidays.mat; holidays = by the
    names of its files. Without it, images of one group are looked for by each other."""
    group: str | None = None
    r"""Regular expression whose parenthesis tells an image's group from its path, such as 'obj(\d+)__'; by default
    class folders are the groups."""
    features: Literal["rmac", "mac", "spoc", "gem", "pool"] | None = None
    """rmac, the paper's, mac, spoc and gem are of the last map; pool is the output as command features gives it, and
    the default for groups without --whiten-on."""
    whiten_on: str | None = None
    """Images to learn the PCA-whitening on, other ones than those of --data; same = those of --data; none."""
    dims: int | None = None
    """Width after whitening; by default 512."""
    whiten_images: int | None = None
    """How many images of --whiten-on are used, the first ones; by default 10000."""
    long_side: int | None = None
    """Pixels that the longer side of an image is resized to; by default 1024."""
    levels: int | None = None
    """Levels of regions of rmac; by default 3."""
    power: float | None = None
    """Of gem; by default 3."""
    tap: str | None = None
    """A layer to read in place of the last map, or of the output for pool."""
    crop_queries: Literal["resize-then-crop", "crop-then-resize", "no"] | None = None
    """What becomes of the boxes of queries; by default resize-then-crop, which keeps the size of things."""
    query_expansion: int = 0
    """Add so many of the first images found to each query and search again."""
    baseline: bool = False
    """Also score the same network as it was before training."""


def score(subject: Subject, chosen: Retrieval, screen: Screen) -> Result:
    """Runs the protocol.

    Raises:
        DeepClusterError: a seed where nothing is drawn, or what the protocol raises.
    """
    from deepcluster.evaluate.retrieval.protocol import retrieval

    if chosen.seed and not (chosen.untrained or chosen.baseline):
        raise DeepClusterError("Nothing is drawn in retrieval but an untrained network: leave out --seed.")
    return retrieval(
        subject,
        chosen.source,
        ground_truth=chosen.ground_truth,
        group=chosen.group,
        features=chosen.features,
        whiten_on=chosen.whiten_on,
        dims=chosen.dims,
        whiten_images=chosen.whiten_images,
        long_side=chosen.long_side,
        levels=chosen.levels,
        power=chosen.power,
        tap=chosen.tap,
        crop_queries=chosen.crop_queries,
        query_expansion=chosen.query_expansion,
        baseline=chosen.baseline,
        seed=chosen.seed,
        screen=screen,
    )
