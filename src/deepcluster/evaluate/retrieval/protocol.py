"""Protocol `retrieval`: every query is looked for among all images, by the dot product of descriptors.

This file strings the others together: ground truth, descriptions, whitening, rankings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.engine.log import Screen
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.retrieval.describe import Check, Describer
from deepcluster.evaluate.retrieval.ground_truth import (
    GroundTruth,
    groups,
    holidays_by_name,
    read_ground_truth,
    rows_of,
)
from deepcluster.evaluate.retrieval.pictures import Chosen
from deepcluster.evaluate.retrieval.ranking import score_rankings
from deepcluster.evaluate.retrieval.recipe import Recipe, features_said, is_word, rules_said, whitening_said
from deepcluster.evaluate.retrieval.rmac import aggregate
from deepcluster.evaluate.retrieval.store import stored_table
from deepcluster.evaluate.retrieval.whiten import learn_whitening

if TYPE_CHECKING:
    from deepcluster.clustering.whitening import Whitening
    from deepcluster.engine.subject import Subject


def retrieval(
    subject: Subject,
    data: Any = None,
    *,
    ground_truth: Any = None,
    group: str | None = None,
    recipe: Recipe | None = None,
    expansion: int = 0,
    baseline: bool = False,
    seed: int = 0,
    screen: Screen | None = None,
) -> Result:
    """Protocol `retrieval`: mean average precision of ranking all images by similarity to each query.

    Descriptors are written to `subject.results`/retrieval.npy part by part, and a later call that wants the same ones
    finds them there; the whitening is retrieval.safetensors.

    Args:
        subject: a run, or any network.
        data: the images, queries among them; None = the training images of a run.
        ground_truth: a gnd_....mat, "holidays" for the rule of its names, or a `GroundTruth`; None = groups.
        group: a regular expression whose parenthesis tells the group from a path; None = labels are groups.
        recipe: how images become descriptors.
        expansion: add so many of the first found to each query and search again; 0 = search once.
        baseline: also score the same network as it was before training (`untrained_...`).
        seed: that the untrained network is drawn with.
        screen: shows bars; None = silence.

    Raises:
        DeepClusterError: queries are missing or cannot be decoded, options do not go together, or the whitening would
            be learned on the images that are searched without being told so.
    """
    if ground_truth is not None and group is not None:
        raise DeepClusterError("--ground-truth and --group both say what counts as found: give one of them.")
    if expansion < 0:
        raise DeepClusterError(f"--query-expansion {expansion} must be 0 or more images.")
    screen = screen or Screen(quiet=True)
    source = subject.source() if data is None else open_images(data)
    truth = _truth(source, ground_truth, group)
    chosen = (recipe or Recipe()).settled(truth)
    search = _Search(source, truth, chosen, screen)
    scores: dict[str, float] = {}
    draws: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    networks = {"": subject, **({"untrained_": subject.untrained(seed)} if baseline else {})}
    for prefix, network in networks.items():
        file = subject.results / ("retrieval-untrained.npy" if prefix else "retrieval.npy")
        there, database, queries, told = search.described(network, file)
        found, single = score_rankings(there, database, queries, expansion=expansion, device=subject.device)
        scores |= {prefix + name: value for name, value in found.items()}
        draws = draws or single
        settings = settings or {**told, **rules_said(there, chosen, expansion)}
    if baseline:
        settings["untrained"] = "the same network with the weights it had before training"
    return Result("retrieval", {"data": source.name, **settings}, scores, draws)


class _Search:
    """Images and what is looked for among them; the same for every network.

    Raises:
        DeepClusterError: queries are missing, or the whitening is to be learned on what is searched.
    """

    def __init__(self, source: ImageSource, truth: GroundTruth, recipe: Recipe, screen: Screen) -> None:
        rows, asked = rows_of(truth, source)
        self.missing = int((rows < 0).sum())
        if self.missing == len(rows):
            raise DeepClusterError(f"No image of {truth.name} is in {source.name}: give --data the images of that set.")
        self.truth = truth.among(rows >= 0, np.ones(len(asked), bool))
        self.database = Chosen(source, rows[rows >= 0])
        self.source, self.recipe, self.screen = source, recipe, screen
        number = {name: place for place, name in enumerate(self.truth.names)}
        boxes = None if recipe.crop_queries == "no" else truth.boxes
        self.queries: Chosen | None = None
        self.places = np.array([number.get(name, -1) for name in truth.queries])
        if boxes is not None or (self.places < 0).any():
            self.queries = Chosen(source, asked, boxes)
        self.others = self._others()

    def _others(self) -> Chosen | None:
        """The images that a whitening is learned on."""
        on, limit = self.recipe.whiten_on, self.recipe.whiten_images
        if on is None:
            return None
        if is_word(on, "same"):
            return Chosen(self.source, self.database.rows[:limit])
        other = open_images(on)
        if other.fingerprint() == self.source.fingerprint():
            raise DeepClusterError(
                f"The whitening would be learned on {other.name}, the very images that are searched: give --whiten-on"
                " another set, or say `--whiten-on same`."
            )
        return Chosen(other, np.arange(min(len(other), limit or len(other))))

    def described(self, subject: Subject, file: Path) -> tuple[GroundTruth, np.ndarray, np.ndarray, dict[str, Any]]:
        """The ground truth of what can be looked at, (N', P) database, (Q', P) queries, and what to tell of them."""
        feature_network = self.recipe.feature_network(subject)
        whitening = None if self.others is None else self._whitening(feature_network, self.others, file)
        table = self._table("database", feature_network, self.database, whitening, file)
        seen = _seen(table)
        if not seen.any():
            raise DeepClusterError(f"No image of {self.source.name} can be looked at: give other images.")
        if self.queries is None:
            queries = table[self.places]
        else:
            own = file.with_name(f"{file.stem}-queries.npy")
            queries = self._table("queries", feature_network, self.queries, whitening, own)
        known = _seen(queries)
        if not known.all() and self.truth.kind != "groups":
            first = self.truth.queries[int(np.flatnonzero(~known)[0])]
            raise DeepClusterError(
                f"{int((~known).sum())} queries of {self.truth.name} cannot be looked at, the first being {first}: it"
                " is damaged, or its box lies outside of it or is too small for the network; mend it, raise --long-side"
                " or take --crop-queries no."
            )
        left_out = [self.truth.names[place] for place in np.flatnonzero(~seen)]
        if left_out or self.missing:
            self.screen.warn(_left_out(left_out, self.missing))
        told: dict[str, Any] = {"images": int(seen.sum()), "queries": int(known.sum()), "dim": table.shape[1]}
        told |= {"images_missing": self.missing, "images_damaged": len(left_out)}
        if left_out or self.missing:
            told["left_out"] = _left_out(left_out, self.missing)
        told["features"] = features_said(self.recipe, feature_network)
        if self.others is not None:
            told["whitening"] = whitening_said(self.others, self.recipe)
        return self.truth.among(seen, known), table[seen], queries[known], told

    def _whitening(self, feature_network: Describer, others: Chosen, file: Path) -> Whitening:
        with self.screen.bar("whitening", len(others)) as advance:

            def rows(start: int, stop: int) -> Iterator[Tensor]:
                for _, found in feature_network.rows(others, start, stop, advance):
                    yield found.flatten(0, 1)

            assert self.recipe.dims
            identity, count = _identity(feature_network, others), len(others)
            place = file.with_suffix(".safetensors")
            return learn_whitening(place, identity, count, feature_network.part, rows, self.recipe.dims, advance)

    def _table(
        self, what: str, feature_network: Describer, chosen: Chosen, whitening: Whitening | None, file: Path
    ) -> np.ndarray:
        """(M, P) descriptors; NaN rows for images that cannot be looked at."""
        identity = _identity(feature_network, chosen)
        if self.others is not None:
            identity["whitening"] = {**_identity(feature_network, self.others), "dims": self.recipe.dims}
        with self.screen.bar(what, len(chosen)) as advance:

            def describe(start: int, stop: int) -> np.ndarray:
                return describe_part(feature_network, chosen, whitening, start, stop, advance)

            return np.asarray(stored_table(file, identity, len(chosen), feature_network.part, describe, advance))


def describe_part(
    feature_network: Describer, chosen: Chosen, whitening: Whitening | None, start: int, stop: int, check: Check
) -> np.ndarray:
    """(stop - start, P) descriptors of these images; NaN for those that cannot be looked at."""
    table: np.ndarray | None = None
    for indices, rows in feature_network.rows(chosen, start, stop, check):
        found = aggregate(rows, whitening).numpy()
        if table is None:
            table = np.full((stop - start, found.shape[1]), np.nan, np.float32)
        table[np.array(indices) - start] = found
    return np.full((stop - start, 1), np.nan, np.float32) if table is None else table


def _truth(source: ImageSource, ground_truth: Any, group: str | None) -> GroundTruth:
    if ground_truth is None:
        return groups(source, group)
    if isinstance(ground_truth, GroundTruth):
        return ground_truth
    return holidays_by_name(source) if ground_truth == "holidays" else read_ground_truth(ground_truth)


def _identity(feature_network: Describer, chosen: Chosen) -> dict[str, Any]:
    whole = {
        name: value for name, value in feature_network.identity.items() if name != "crop" or chosen.boxes is not None
    }
    return {**whole, "images": chosen.fingerprint(), "count": len(chosen)}


def _seen(table: np.ndarray) -> np.ndarray:
    """(M,) bool: the rows that hold a descriptor."""
    return np.isfinite(table).all(axis=1)


def _left_out(damaged: list[str], missing: int) -> str:
    some = ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else "")
    return (
        f"{missing} images of the ground truth are missing and {len(damaged)} cannot be looked at"
        + (f" ({some})" if damaged else "")
        + "; they are neither searched nor counted as right"
    )
