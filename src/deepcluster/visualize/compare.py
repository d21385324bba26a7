"""Two runs in one picture: their curves over each other, and their pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deepcluster.engine.log import Screen
from deepcluster.engine.run import Run, load_subject
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.clustered_images import SILENT, open_pixels
from deepcluster.visualize.filters import filter_sheet
from deepcluster.visualize.history import Metrics, Panel, curve, panel_figure
from deepcluster.visualize.images import side_by_side, stacked, text_line, titled
from deepcluster.visualize.letters import verbatim
from deepcluster.visualize.neighbors import neighbor_sheet
from deepcluster.visualize.style import Picture, Pictures

PANELS = (
    Panel("Loss", "cross-entropy (nats)", {"": "loss"}),
    Panel("NMI with labels", "NMI (0 to 1)", {"": "nmi_labels"}, top=1),
    Panel("Purity", "share of images", {"": "purity"}, top=1),
    Panel("NMI with the previous clusters", "NMI (0 to 1)", {"": "nmi_previous"}, top=1),
    Panel("Images that changed cluster", "share of images", {"": "reassigned"}, top=1),
    Panel("Clusters in use", "clusters", {"": "clusters_used"}),
    Panel("Watched score", "score (0 to 1)", {"": "watched"}, top=1),
    Panel("Speed", "images / second", {"": "images_per_second"}),
)


def draw_compare(
    subject: Subject,
    *,
    other: str,
    data: Any = None,
    queries: int = 6,
    k: int = 10,
    image_size: int | None = None,
    seed: int = 0,
    screen: Screen = SILENT,
) -> Pictures:
    """Two runs side by side: their curves, their first filters, and their neighbors of the same queries.

    Args:
        other: the second run, or another network.
        data: images among which neighbors are searched; by default those the first run was trained on.
        queries: how many queries, drawn at random, of different classes where there are labels.
        k: neighbors of each.
        image_size: for backbones by name: side of their input images in pixels; by default what their weights were
            made for.
        seed: of the queries.
    """
    by_name = not (Path(other) / "run.json").is_file() and not Path(other).is_file()
    second = load_subject(other, device=subject.device, image_size=image_size if by_name else None)
    if image_size is not None and isinstance(subject, Run) and isinstance(second, Run):
        raise DeepClusterError("Both runs know the size of their images: leave out --image-size.")
    names = short_names([subject.name, other])
    networks = dict(zip(names, (subject, second), strict=True))
    pixels = open_pixels(subject, data)
    neighbors, text = neighbor_sheet(networks, pixels, queries=queries, k=k, seed=seed, screen=screen)
    pictures: dict[str, Picture] = {}
    if isinstance(subject, Run) and isinstance(second, Run):
        pictures["compare-history"] = compare_figure({names[0]: subject.metrics, names[1]: second.metrics})
    try:
        filters = {name: filter_sheet(network) for name, network in networks.items()}
    except DeepClusterError as error:
        screen.print(f"no picture of filters: {error}")
    else:
        texts = {name: text for name, (_, text) in filters.items()}
        if len(set(texts.values())) == 1:
            texts = {"Both": texts[names[0]]}
        legend = " ".join(f"{name}: {text}" for name, text in texts.items())
        sheets = named_side_by_side({name: sheet for name, (sheet, _) in filters.items()})
        pictures["compare-filters"] = titled(sheets, "First-layer filters", legend)
    title = f"The {k} nearest images of the same queries"
    return {**pictures, "compare-neighbors": titled(neighbors, title, text[:1].upper() + text[1:])}


def compare_figure(runs: Mapping[str, Metrics]) -> Figure:
    """The curves that at least one of the runs has, one panel a quantity, one color a run.

    Args:
        runs: name -> one mapping an epoch, as in metrics.jsonl; up to six. A DeepClusterError where no epoch of any has
            ended yet.
    """
    colors = dict(zip(runs, style.SERIES, strict=False))
    shown = []
    for panel in PANELS:
        curves = {name: (*curve(metrics, panel.series[""]), colors[name]) for name, metrics in runs.items()}
        if curves := {name: each for name, each in curves.items() if len(each[0])}:
            shown.append((panel, curves))
    if not shown:
        raise DeepClusterError("There is no curve to compare yet: no epoch has ended; train for longer first.")
    page = panel_figure(shown, labels=False)
    page.set_figheight(page.get_figheight() + 0.5)
    page.legend(
        [Line2D([], [], color=color, linewidth=2.5) for color in colors.values()], [verbatim(name) for name in colors],
        loc="outside upper left", ncols=1, frameon=False, fontsize=10, labelcolor=style.INK,
    )  # fmt: skip
    return page


def named_side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """(H, W, 3) pictures next to each other, each below its name."""
    parts = [stacked([text_line(name, each.shape[1], bold=True), each], gap=2) for name, each in pictures.items()]
    return side_by_side(parts, gap=24)


def short_names(names: Sequence[str]) -> list[str]:
    """The same without the folders that all have in common; equal names are numbered."""
    parts = [PurePath(name).parts for name in names]
    common = 0
    while all(len(each) > common + 1 for each in parts) and len({each[common] for each in parts}) == 1:
        common += 1
    found = ["/".join(each[common:]) for each in parts]
    if len(set(found)) < len(found):
        found = [f"{name} ({number})" for number, name in enumerate(found, 1)]
    return found
