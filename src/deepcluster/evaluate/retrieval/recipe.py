"""How images become descriptors: what a user may choose, what is usual, and how it is said in a result.

This file opens no images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.retrieval.describe import Describer, Maps, Output
from deepcluster.evaluate.retrieval.ground_truth import GroundTruth
from deepcluster.evaluate.retrieval.pictures import CROPS, Chosen
from deepcluster.evaluate.retrieval.rmac import POOLS

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

FEATURES = (*POOLS, "pool")


@dataclass(frozen=True)
class Recipe:
    """How images become descriptors; None = the usual, where there is any.

    Attributes:
        features: "rmac", "mac", "spoc", "gem" (of the last map), "pool" (the output of the network, as command
            `features` gives it); None = "pool" for groups where no whitening is asked for, else "rmac".
        whiten_on: images that the whitening is learned on: a source, "same" (the database) or "none".
        dims: width after whitening (512).
        whiten_images: images of `whiten_on` that are used, the first ones (10,000).
        long_side: pixels of the longer side of an image (1024); not of pool.
        levels: of rmac (3).
        power: of gem (3).
        tap: a layer in place of the last map or the output.
        crop_queries: what becomes of boxes (`pictures.CROPS`; "resize-then-crop", for pool "crop-then-resize").
    """

    features: str | None = None
    whiten_on: Any = None
    dims: int | None = None
    whiten_images: int | None = None
    long_side: int | None = None
    levels: int | None = None
    power: float | None = None
    tap: str | None = None
    crop_queries: str | None = None

    def settled(self, truth: GroundTruth) -> Recipe:
        """The same with every None that means something filled in.

        Raises:
            DeepClusterError: an option that means nothing here, or a value out of range.
        """
        usual = "pool" if truth.kind == "groups" and self.whiten_on in (None, "none") else "rmac"
        features = self.features or usual
        if features not in FEATURES:
            raise DeepClusterError(f"There are no features {features!r}: choose one of {', '.join(FEATURES)}.")
        if features == "rmac" and self.whiten_on is None:
            raise DeepClusterError(
                "R-MAC whitens its regions by what other images are like: give --whiten-on another set (for Oxford5k"
                " Paris6k, and the reverse), or `--whiten-on same` or `--whiten-on none` by name."
            )
        whitened = self.whiten_on is not None and not is_word(self.whiten_on, "none")
        for name, owner, fits in (
            ("long_side", "features of maps", features != "pool"),
            ("levels", "rmac", features == "rmac"),
            ("power", "gem", features == "gem"),
            ("dims", "whitened features, of --whiten-on", whitened),
            ("whiten_images", "whitened features, of --whiten-on", whitened),
            ("crop_queries", "ground truth with boxes", truth.boxes is not None),
        ):
            value = getattr(self, name)
            if value is not None and not fits:
                raise DeepClusterError(f"--{name.replace('_', '-')} is an option of {owner}: leave it out here.")
            if isinstance(value, (int, float)) and value <= 0:
                raise DeepClusterError(f"--{name.replace('_', '-')} {value} must be above 0.")
        crop = self.crop_queries or (CROPS[1] if features == "pool" else CROPS[0])
        if crop not in CROPS or (features == "pool" and crop == CROPS[0]):
            choices = CROPS[1:] if features == "pool" else CROPS
            raise DeepClusterError(f"--crop-queries {crop} is none of {', '.join(choices)} for features {features}.")
        return Recipe(
            features,
            self.whiten_on if whitened else None,
            self.dims or 512,
            self.whiten_images or 10_000,
            self.long_side or 1024,
            self.levels or 3,
            self.power or 3.0,
            self.tap,
            crop,
        )

    def feature_network(self, subject: Subject) -> Describer:
        """What makes rows of images, of a settled recipe."""
        if self.features == "pool":
            return Output(subject, self.tap)
        assert self.features and self.long_side and self.levels and self.power and self.crop_queries
        return Maps(
            subject,
            self.features,
            tap=self.tap,
            long_side=self.long_side,
            crop=self.crop_queries,
            levels=self.levels,
            power=self.power,
        )


def features_said(recipe: Recipe, feature_network: Describer) -> str:
    """The features in a sentence."""
    tap = feature_network.identity["tap"]
    if recipe.features == "pool":
        return f"pool: {tap or 'the output of the network'}, as command features gives it, L2-normalized"
    how = {
        "rmac": f"{recipe.levels} levels of regions, 40 % overlap",
        "mac": "maximum",
        "spoc": "mean",
        "gem": f"mean of powers of {recipe.power or 0:g}",
    }[str(recipe.features)]
    return f"{recipe.features} of {tap}: {how}; images with a longer side of {recipe.long_side} px"


def whitening_said(others: Chosen, recipe: Recipe) -> str:
    """The whitening in a sentence."""
    same = " (the images that are searched)" if is_word(recipe.whiten_on, "same") else ""
    return f"to {recipe.dims} dimensions at most, learned on the first {len(others)} images of {others.name}{same}"


def rules_said(truth: GroundTruth, recipe: Recipe, expansion: int) -> dict[str, Any]:
    """What the numbers mean, in sentences."""
    words: dict[str, Any] = {"ground_truth": f"{truth.name} ({truth.kind})" if truth.kind != "groups" else "groups"}
    rule = "mean of the precision at each right image" if truth.kind == "groups" else "trapezoid rule, junk taken out"
    words["average_precision"] = rule + "; of equally similar images the wrong ones come first"
    if truth.own_left_out:
        words["own_image"] = "a query is not looked for in its own image"
    if truth.boxes is not None:
        words["queries_cropped"] = f"boxes: {recipe.crop_queries}"
    words["query_expansion"] = f"the first {expansion} found are added" if expansion else "none: searched once"
    return words


def is_word(value: Any, word: str) -> bool:
    """Whether what may also be a source is this word."""
    return isinstance(value, str) and value == word
