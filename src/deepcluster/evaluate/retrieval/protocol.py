"""Protocol `retrieval`: every query is searched among all images, by the dot product of descriptors."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.open import must_exist, open_images
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.engine.log import Screen
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, counted
from deepcluster.evaluate.options import check_choice, check_counts, check_not_given
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.retrieval.descriptors import (
    KIND,
    Extractor,
    NetworkOutput,
    PooledMaps,
    compute_descriptors,
    learn_whitening,
    load_whitening,
)
from deepcluster.evaluate.retrieval.ground_truth import (
    GroundTruth,
    groups,
    holidays_by_name,
    locate_images,
    read_ground_truth,
)
from deepcluster.evaluate.retrieval.images import Crop, ImageSubset
from deepcluster.evaluate.retrieval.ranking import score_rankings
from deepcluster.evaluate.tensor_file import save_tensors
from deepcluster.io import write_array, write_text
from deepcluster.reading import read_npy, read_text
from deepcluster.resume import ResumeFile

Features = Literal["rmac", "mac", "spoc", "gem", "pool"]


def retrieval(
    subject: Subject,
    data: Any = None,
    *,
    ground_truth: Any = None,
    group: str | None = None,
    features: Features | None = None,
    whiten_on: Any = None,
    dims: int | None = None,
    whiten_images: int | None = None,
    long_side: int | None = None,
    levels: int | None = None,
    power: float | None = None,
    tap: str | None = None,
    crop_queries: Crop | None = None,
    query_expansion: int = 0,
    baseline: bool = False,
    seed: int = 0,
    screen: Screen | None = None,
) -> Result:
    r"""Mean average precision of finding images of the same thing, by R-MAC or pooled features.

    Every query is searched among all images. The descriptors are kept as retrieval.npy, and used again where another
    evaluation needs the same ones; the whitening is kept as retrieval.safetensors.

    Args:
        subject: a run, or any network.
        data: the images, queries among them; None = the training images of a run.
        ground_truth: gnd_oxford5k.mat, gnd_paris6k.mat, gnd_roxford5k.mat, gnd_rparis6k.mat or gnd_holidays.mat;
            holidays = by the names of its files. Without it, images of one group are searched by each other.
        group: regular expression whose parenthesis matches an image's group in its path, such as 'obj(\d+)__'; None =
            class folders are the groups.
        features: rmac (the paper's), mac, spoc and gem pool the last feature map; pool is the output as the command
            features gives it, and the default for groups without `whiten_on`.
        whiten_on: images to learn the PCA-whitening on, other ones than those of --data; same = those of --data; none.
        dims: width after whitening; None = 512.
        whiten_images: how many images of `whiten_on` are used, the first ones; None = 10000.
        long_side: pixels that the longer side of an image is resized to; None = 1024.
        levels: levels of regions of rmac; None = 3.
        power: of gem; None = 3.
        tap: a layer to read in place of the last feature map, or of the output for pool.
        crop_queries: what is done with the boxes of queries; None = resize-then-crop, which keeps the size of objects
            (crop-then-resize for pool).
        query_expansion: add this many of the first images found to each query and search again.
        baseline: also score the same network as it was before training.
        seed: of the untrained network.
        screen: shows progress; None = silence.

    Raises:
        DeepClusterError: queries are missing or cannot be decoded, options do not go together, or the whitening would
            be learned on the images that are searched without `whiten_on` saying so.
    """
    if ground_truth is not None and group is not None:
        raise DeepClusterError("--ground-truth and --group both say what counts as found: give one of them.")
    check_counts(least=0, query_expansion=query_expansion)
    screen = screen or Screen(quiet=True)
    source = subject.source() if data is None else open_images(data)
    truth = _ground_truth(source, ground_truth, group)
    whitened = whiten_on is not None and not _is_word(whiten_on, "none")
    if features is None:
        features = "pool" if truth.kind == "groups" and not whitened else "rmac"
    if features == "rmac" and whiten_on is None:
        raise DeepClusterError(
            "R-MAC whitens its regions by other images: give --whiten-on another set (for Oxford5k Paris6k, and the"
            " reverse), or `--whiten-on same` or `--whiten-on none`."
        )
    check_choice("features", features, get_args(Features))
    for owner, fits, options in (
        ("features of maps", features != "pool", {"long_side": long_side}),
        ("rmac", features == "rmac", {"levels": levels}),
        ("gem", features == "gem", {"power": power}),
        ("whitened features, of --whiten-on", whitened, {"dims": dims, "whiten_images": whiten_images}),
        ("ground truth with boxes", truth.boxes is not None, {"crop_queries": crop_queries}),
    ):
        if not fits:
            check_not_given(f"is an option of {owner}: leave it out here", **options)
    check_counts(long_side=long_side, levels=levels, dims=dims, whiten_images=whiten_images)
    if power is not None and power <= 0:
        raise DeepClusterError(f"--power {power} must be above 0.")
    crops: tuple[Crop, ...] = get_args(Crop)[1:] if features == "pool" else get_args(Crop)
    crop = crop_queries or crops[0]
    check_choice("crop-queries", crop, crops)

    def make_extractor(network: Subject) -> Extractor:
        if features == "pool":
            return NetworkOutput(network, tap)
        pooling: dict[str, Any] = {"long_side": long_side or 1024, "levels": levels or 3, "power": power or 3.0}
        return PooledMaps(network, str(features), tap=tap, **pooling)

    search = _Search(source, truth, crop, screen)
    if whitened:
        search.whiten(whiten_on, whiten_images or 10_000, dims or 512)
    scores: dict[str, float] = {}
    draws: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    networks = {"": subject, **({"untrained_": subject.untrained(seed)} if baseline else {})}
    for prefix, network in networks.items():
        file = network.results / "retrieval.npy"
        usable, database, queries, notes = search.describe(make_extractor(network), file)
        found, single = score_rankings(usable, database, queries, expansion=query_expansion, device=subject.device)
        scores |= {prefix + name: value for name, value in found.items()}
        draws, settings = draws or single, settings or notes
    settings |= _rules(truth, crop, query_expansion)
    if baseline:
        settings["untrained"] = "the same network with the weights it had before training"
    return Result("retrieval", {"data": source.name, **settings}, scores, draws)


def _ground_truth(source: ImageSource, ground_truth: Any, group: str | None) -> GroundTruth:
    if ground_truth is None:
        return groups(source, group)
    if isinstance(ground_truth, GroundTruth):
        return ground_truth
    if _is_word(ground_truth, "holidays"):
        return holidays_by_name(source)
    must_exist(str(ground_truth))
    return read_ground_truth(ground_truth)


class _Search:
    """Images and queries; the same for every network. DeepClusterError where queries, or all images, are missing."""

    def __init__(self, source: ImageSource, truth: GroundTruth, crop: Crop, screen: Screen) -> None:
        rows, query_rows = locate_images(truth, source)
        self.missing = int((rows < 0).sum())
        if self.missing == len(rows):
            raise DeepClusterError(f"No image of {truth.name} is in {source.name}: give --data the images of that set.")
        self.source, self.screen = source, screen
        self.whitening_images: ImageSubset | None = None
        self.dims = 0
        self.truth = truth.subset(rows >= 0, np.ones(len(query_rows), bool))
        self.database = ImageSubset(source, rows[rows >= 0])
        index = {name: position for position, name in enumerate(self.truth.names)}
        self.query_positions = np.array([index.get(name, -1) for name in truth.queries])
        self.queries: ImageSubset | None = None  # as rows of the database
        if (truth.boxes is not None and crop != "no") or (self.query_positions < 0).any():
            self.queries = ImageSubset(source, query_rows, truth.boxes, crop)

    def whiten(self, on: Any, limit: int, dims: int) -> None:
        """Has region vectors whitened to `dims` dimensions, as learned on the first `limit` images of `on`;
        DeepClusterError if these are the images that are searched, without `on` saying so."""
        self.dims = dims
        if _is_word(on, "same"):
            self.whitening_images = ImageSubset(self.source, self.database.rows[:limit])
            return
        other = open_images(on)
        if other.fingerprint() == self.source.fingerprint():
            raise DeepClusterError(
                f"The whitening would be learned on {other.name}, the very images that are searched: give --whiten-on"
                " another set, or say `--whiten-on same`."
            )
        self.whitening_images = ImageSubset(other, np.arange(min(len(other), limit)))

    def describe(self, extractor: Extractor, file: Path) -> tuple[GroundTruth, np.ndarray, np.ndarray, dict[str, Any]]:
        """The ground truth of the usable images, (N', P) database, (Q', P) queries, and notes for the result."""
        depends_on: list[Any] = [extractor.settings, self.database.fingerprint()]
        if self.whitening_images is not None:
            depends_on += [self.whitening_images.fingerprint(), self.dims]
        resume = ResumeFile(file.with_suffix(".state"), depends_on, say=self.screen.print)
        whitening = self._whitening(extractor, file.with_suffix(".safetensors"), resume)

        def describe(stage: str, images: ImageSubset, file: Path) -> np.ndarray:
            """(M, P) descriptors, from `file` if they are the same ones, else computed and written there; NaN rows for
            images that cannot be used."""
            key = file.with_name(f"{file.name}.digest")
            wanted = digest(resume.digest, images.fingerprint())
            with contextlib.suppress(OSError, ValueError):  # missing or damaged: computed again
                if read_text(key, advice="") == wanted:
                    return read_npy(file, advice="")
            with self.screen.bar(stage, len(images)) as advance:
                work = partial(compute_descriptors, extractor, images, whitening, resume=resume, advance=advance)
                table = np.asarray(resume.run(stage, work).numpy())
            key.unlink(missing_ok=True)  # before the table, so that it never belongs to another one
            write_array(file, table)
            write_text(key, wanted)
            return table

        table = describe("database", self.database, file)
        usable = np.isfinite(table).all(axis=1)
        if not usable.any():
            raise DeepClusterError(f"No image of {self.source.name} can be used: give other images.")
        queries = table[self.query_positions]
        if self.queries is not None:
            queries = describe("queries", self.queries, file.with_name(f"{file.stem}-queries.npy"))
        resume.remove()
        known = np.isfinite(queries).all(axis=1)
        if not known.all() and self.truth.kind != "groups":
            first = self.truth.queries[int(np.flatnonzero(~known)[0])]
            raise DeepClusterError(
                f"{counted(int((~known).sum()), 'query')} of {self.truth.name} cannot be used, the first being {first}:"
                " it is damaged, or its box lies outside of it or is too small for the network; repair it, raise"
                " --long-side or use --crop-queries no."
            )
        damaged = [self.truth.names[position] for position in np.flatnonzero(~usable)]
        notes: dict[str, Any] = {
            "images": int(usable.sum()),
            "queries": int(known.sum()),
            "dim": table.shape[1],
            "images_missing": self.missing,
            "images_damaged": len(damaged),
            "features": extractor.summary,
        }
        if damaged or self.missing:
            examples = f" ({', '.join(damaged[:3])}{', ...' if len(damaged) > 3 else ''})" if damaged else ""
            notes["left_out"] = (
                f"{counted(self.missing, 'image')} of the ground truth {'is' if self.missing == 1 else 'are'} missing"
                f" and {len(damaged)} cannot be used{examples}; they are neither searched nor counted as relevant"
            )
            self.screen.warn(notes["left_out"])
        if self.whitening_images is not None:
            same = " (the images that are searched)" if self.whitening_images.source is self.source else ""
            notes["whitening"] = (
                f"to {self.dims} dimensions at most, learned on the first"
                f" {counted(len(self.whitening_images), 'image')} of {self.whitening_images.name}{same}"
            )
        return self.truth.subset(usable, known), table[usable], queries[known], notes

    def _whitening(self, extractor: Extractor, file: Path, resume: ResumeFile) -> Whitening | None:
        """The whitening in `file` if it is that of this extractor and these images, else a new one."""
        images = self.whitening_images
        if images is None:
            return None
        made_by = {**extractor.settings, "images": images.fingerprint(), "dims": self.dims}
        with contextlib.suppress(DeepClusterError):  # missing or damaged: learned again
            whitening, settings = load_whitening(file)
            if digest(settings) == digest(made_by):
                return whitening
        with self.screen.bar("whitening", len(images)) as advance:
            work = partial(learn_whitening, extractor, images, self.dims, resume=resume, advance=advance)
            whitening = Whitening().load_state_dict(resume.run("whitening", work))
        save_tensors(file, KIND, made_by, whitening.state_dict())
        return whitening


def _rules(truth: GroundTruth, crop: str, expansion: int) -> dict[str, Any]:
    """What the scores mean, in sentences."""
    is_groups = truth.kind == "groups"
    rule = "mean of the precision at each relevant image" if is_groups else "trapezoid rule, junk removed"
    rules = {
        "ground_truth": "groups" if is_groups else f"{truth.name} ({truth.kind})",
        "average_precision": f"{rule}; among equally similar images the irrelevant ones come first",
    }
    if truth.ignores_own_image:
        rules["own_image"] = "a query is not searched in its own image"
    if truth.boxes is not None:
        rules["queries_cropped"] = f"boxes: {crop}"
    found = f"the first {expansion} found are added" if expansion else "none: searched once"
    return rules | {"query_expansion": found}


def _is_word(value: Any, word: str) -> bool:
    """Whether an argument that may also be a source is this word."""
    return isinstance(value, str) and value == word
