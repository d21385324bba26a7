"""`deepcluster visualize RUN map`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from deepcluster.cli.pictures.common import OfNetwork, called, pixels_of

if TYPE_CHECKING:
    import numpy as np

    from deepcluster.data.cache import Pixels
    from deepcluster.engine.log import Screen
    from deepcluster.engine.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Map(OfNetwork):
    """The features of images on a plane, a dot each, colored by cluster or class; or the images themselves."""

    source: Annotated[str | None, arg(name="data")] = None
    """Images to lay out; by default those the run was trained on."""
    layout: tuple[Literal["pca", "tsne", "umap"], ...] = ("pca", "tsne")
    """pca, tsne, umap (needs the package umap-learn); a picture each."""
    points: int = 5000
    """Images at most, drawn at random."""
    color: Literal["auto", "cluster", "label", "none"] = "auto"
    """auto = by cluster for a run, by label for another network that is shown labelled images."""
    thumbnails: bool = False
    """Small images in place of dots, none over another."""
    tap: str | None = None
    """Layer whose features are laid out; by default the network's output."""
    perplexity: float = 30.0
    """Of t-SNE: about how many neighbors count."""


def draw(subject: Subject, chosen: Map, screen: Screen) -> list[Path]:
    """Writes map-pca.png, map-tsne.png, ..."""
    import numpy as np

    from deepcluster.errors import DeepClusterError
    from deepcluster.visualize import style
    from deepcluster.visualize.contact_sheets import reader
    from deepcluster.visualize.map import can_lay_out, lay_out, map_figure, thumbnail_map
    from deepcluster.visualize.page import titled
    from deepcluster.visualize.report_text import short

    if chosen.points < 4:
        raise DeepClusterError(f"--points {chosen.points} are too few for a map: give 4 or more.")
    for how in chosen.layout:
        can_lay_out(how)
    pixels = pixels_of(subject, chosen.source)
    if len(pixels) > chosen.points:
        index = np.sort(np.random.default_rng(chosen.seed).permutation(pixels.good)[: chosen.points])
    else:
        index = pixels.good
    with screen.bar("images", len(index)) as bar:
        features = described(subject, pixels, index, chosen.tap, bar)
    index, features = index[np.isfinite(features).all(axis=1)], features[np.isfinite(features).all(axis=1)]
    kind, groups, names = _groups(subject, chosen, pixels, index, features)
    files = []
    for how in chosen.layout:
        screen.say(f"laying out {len(features):,} images by {how}")
        places = lay_out(features, how, seed=chosen.seed, perplexity=chosen.perplexity)
        what = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[how]
        title = f"{what} of the features of {called(subject)}"
        text = f"{len(index):,} images of {short(pixels.source.name)}"
        file = chosen.folder(subject) / f"map-{how}{'-thumbnails' if chosen.thumbnails else ''}.png"
        if chosen.thumbnails:
            read = reader(pixels.source, 48)
            page = thumbnail_map(places, lambda number: read(int(index[number])))  # noqa: B023
            text += "; each cell of a grid shows the image that lies nearest to its middle."
            files.append(style.save(titled(page, title, text), file))
            continue
        text += f", a dot each{f', colored by {kind}' if kind else ''}"
        axes = ("first principal component", "second principal component") if how == "pca" else ("", "")
        files.append(style.save(map_figure(places, groups, names, title, text, axes), file))
    return files


def described(subject: Subject, pixels: Pixels, index: np.ndarray, tap: str | None, bar: object) -> np.ndarray:
    """(M, D) features of some images; NaN rows for what cannot be decoded."""
    import numpy as np

    from deepcluster.features.extract import extract

    backbone = subject.backbone.to(subject.device)
    found, features = extract(
        backbone,
        pixels,
        size=backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        device=subject.device,
        tap=tap,
        only=index,
        check=bar,  # type: ignore[arg-type]
    )
    table = np.full((len(index), features.shape[1]), np.nan, np.float32)
    table[np.searchsorted(index, found)] = features
    return table


def _groups(
    subject: Subject, chosen: Map, pixels: Pixels, index: np.ndarray, features: np.ndarray
) -> tuple[str, np.ndarray | None, list[str]]:
    """What dots are colored by, the group of each, and the groups' names."""
    import numpy as np

    from deepcluster.visualize.groups import labels_of, run_of

    kind = chosen.color
    if kind == "auto":
        labelled = pixels.source.labels is not None and (np.asarray(pixels.source.labels) >= 0).any()
        kind = "cluster" if subject.clustered else "label" if labelled else "none"
    if kind == "none":
        return "", None, []
    if kind == "label":
        labels = labels_of(pixels.source)
        names = list(pixels.source.classes) or [f"class {number}" for number in range(int(labels.max()) + 1)]
        return "class", labels[index], names
    run = run_of(subject, "map --color cluster")
    if chosen.source is None:
        cluster = np.asarray(run.assignment)[index]
    else:
        whole = features if chosen.tap is None else described(subject, pixels, index, None, lambda images: None)
        cluster = run.model.nearest(whole)[0]
    return "cluster", cluster, [f"cluster {number}" for number in range(len(run.centroids))]
