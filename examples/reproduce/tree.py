"""Purity of a run's clusters over a tree of labels, such as WordNet (arXiv 1807.05520, appendix, figure 6).

    python examples/reproduce/tree.py runs/a --tree wordnet.txt --out runs/tree

A cluster of ten breeds of dog is impure by its labels and pure as `dog`. The tree is a text file of lines
`child parent [name of the child]`, the classes are found in it by id or by name.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from common import Row, Study, run_script, with_options
from tyro.conf import Positional, arg

from deepcluster import load_run, open_images
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.labels import labels_of
from deepcluster.visualize import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Tree:
    """Nodes with one parent each.

    Attributes:
        parent: node -> parent; roots are missing.
        names: node -> what people call it; nodes without a name are missing.
        ignored: further parents that the file gives and that are not followed.
    """

    parent: dict[str, str]
    names: dict[str, str]
    ignored: int = 0

    def path(self, node: str) -> list[str]:
        """From the root down to `node`."""
        found = [node]
        while found[-1] in self.parent:
            found.append(self.parent[found[-1]])
        return found[::-1]


def tree(
    run: Positional[Path],
    tree: Path,
    names: Path | None = None,
    parent_first: bool = False,
    threshold: float = 0.7,
    data: str | None = None,
    out: Path | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Purity at each depth of the tree, and the node that best describes each cluster.

    Args:
        run: run folder.
        tree: text file of lines `child parent [name of the child]`; of several parents the first is followed.
        names: text file of lines `node name`.
        parent_first: lines of the tree are `parent child`, as in ImageNet's wordnet.is_a.txt.
        threshold: a cluster is pure where one node holds more than this share of it.
        data: labelled images to assign and look at; none = the training images.
        out: folder to write; none = studies/ in the run's folder.
        as_json: print one JSON object.
    """
    known, loaded = read_tree(tree, names, parent_first=parent_first), load_run(run)
    source = loaded.source() if data is None else open_images(data)
    labels = labels_of(source, "tree")
    assignment = loaded.assignment if data is None else loaded.assign(source).cluster
    used = np.unique(labels[labels >= 0])  # a class without images needs no node
    classes = [source.classes[label] for label in used]
    paths = paths_of(known, classes, tree)
    place = np.where(labels >= 0, np.searchsorted(used, labels), -1)
    depths, clusters = purity_over(assignment, place, paths, threshold)
    roots = {path[0] for path in paths}
    for row in clusters:
        row["label"] = classes[row["label"]]
        row["node_name"] = known.names.get(row["node"], row["node"])
    described = sum(row["node"] not in {"", *roots} for row in clusters)
    last = depths[-1]
    sentence = (
        f"By their labels {last['pure']:,} of {len(clusters):,} clusters are pure (one label holds more than"
        f" {threshold:g} of the images), and the purity is {last['purity']:.3f}"
    )
    for row in depths[1:-1]:
        sentence += f"; at depth {row['depth']} {row['pure']:,} are, and it is {row['purity']:.3f}"
        sentence += f" (chance {row['chance']:.3f})"
    sentence += f". An inner node below the root describes {described:,} of the clusters."
    if known.ignored:
        sentence += f" The file gives {known.ignored:,} further parents, which are not followed."
    settings = {"run": str(run), "tree": str(tree), "threshold": threshold}
    page = tree_figure(depths, threshold, len(clusters))
    Study("tree", sentence, settings, depths, page, {"clusters": clusters}).report(out or run / "studies", as_json)


def read_tree(file: Path, names: Path | None = None, *, parent_first: bool = False) -> Tree:
    """Reads a tree; columns are separated by tabs or spaces, and lines that start with # are skipped.

    Args:
        names: lines `node name`, which win over names of the third column.

    Raises:
        DeepClusterError: a file that cannot be read, a line of one word, or a cycle.
    """
    parents: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for child, parent, *name in _lines(file, 3, "child parent"):
        if parent_first:
            child, parent = parent, child
        parents.setdefault(child, [])
        parents[child] += [] if parent in parents[child] else [parent]
        known |= {child: name[0]} if name else {}
    if not parents:
        raise DeepClusterError(f"{file} holds no line `child parent`: give a file that holds a tree.")
    try:
        graphlib.TopologicalSorter(parents).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1][::-1])
        raise DeepClusterError(f"The tree of {file} has a cycle ({cycle}): remove one of these lines.") from None
    if names is not None:
        known |= dict(_lines(names, 2, "node name"))
    ignored = sum(len(each) - 1 for each in parents.values())
    return Tree({child: each[0] for child, each in parents.items()}, known, ignored)


def paths_of(tree: Tree, classes: Sequence[str], file: Path | str = "the tree") -> list[list[str]]:
    """The path from the root to each class, found by its id or else by its name.

    Raises:
        DeepClusterError: classes that are not in the tree, or a name of several nodes.
    """
    nodes = set(tree.parent) | set(tree.parent.values())
    named: dict[str, list[str]] = {}
    for node, name in tree.names.items():
        named.setdefault(name, []).append(node)
    missing = [name for name in classes if name not in nodes and name not in named]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DeepClusterError(
            f"{len(missing)} of {len(classes)} classes are not in {file} ({some}): add a line for each, or --names."
        )
    for name in classes:
        if name not in nodes and len(named[name]) > 1:
            raise DeepClusterError(
                f"The class {name!r} is the name of {len(named[name])} nodes of {file}: use ids instead."
            )
    return [tree.path(name if name in nodes else named[name][0]) for name in classes]


def purity_over(
    assignment: np.ndarray, labels: np.ndarray, paths: Sequence[Sequence[str]], threshold: float
) -> tuple[list[Row], list[Row]]:
    """Purity at each depth, and the node that best describes each cluster.

    At depth d a label counts as its ancestor d steps below the root, or as itself where it is not that deep.

    Args:
        assignment: (N,) int64 cluster of each image; -1 = none.
        labels: (N,) int64 position in `paths`; -1 = none.
        paths: for each label the nodes from the root to it.
        threshold: above one half, so that at most one node of a depth holds as much of a cluster.

    Returns:
        One row a depth: `purity`, the share of images that are of their cluster's majority node; `chance`, the same
        for all images in one cluster; `pure`, clusters of which one node holds more than `threshold`.
        One row a cluster: its majority `label`, and `node`, the deepest inner node (no label itself) that
        holds more than `threshold` of it; empty where not even a root does.

    Raises:
        DeepClusterError: a threshold outside, or no image with both a cluster and a label.
    """
    if not 0.5 <= threshold < 1:
        raise DeepClusterError(f"--threshold is {threshold:g}: give a share from 0.5 to below 1.")
    known = (assignment >= 0) & (labels >= 0)
    if not known.any():
        raise DeepClusterError("No image has both a cluster and a label: give a run whose images have labels.")
    numbers, cluster = np.unique(assignment[known], return_inverse=True)
    table = np.zeros((len(numbers), len(paths)), np.int64)  # images of each cluster and label
    np.add.at(table, (cluster, labels[known]), 1)
    sizes = table.sum(1)
    clusters: list[Row] = [
        {"cluster": int(number), "images": int(row.sum()), "label": int(row.argmax()),
         "label_purity": float(row.max() / row.sum()), "node": "", "depth": None, "node_purity": None}
        for number, row in zip(numbers, table, strict=True)
    ]  # fmt: skip
    leaves = {path[-1] for path in paths}
    depths: list[Row] = []
    for depth in range(max(map(len, paths))):
        nodes, column = np.unique([path[min(depth, len(path) - 1)] for path in paths], return_inverse=True)
        counts = np.zeros((len(numbers), len(nodes)), np.int64)
        np.add.at(counts.T, column, table.T)
        share = counts.max(1) / sizes
        depths.append(
            {
                "depth": depth,
                "nodes": len(nodes),
                "purity": float(counts.max(1).sum() / sizes.sum()),
                "chance": float(counts.sum(0).max() / sizes.sum()),
                "pure": int((share > threshold).sum()),
                "pure_share": float((share > threshold).mean()),
            }
        )
        for row, part, node in zip(clusters, share, nodes[counts.argmax(1)], strict=True):
            if part > threshold and node not in leaves:
                row |= {"node": str(node), "depth": depth, "node_purity": float(part)}
    return depths, clusters


def tree_figure(depths: Sequence[Row], threshold: float, clusters: int) -> Figure:
    """Purity by depth next to that of all images in one cluster, and how many clusters are pure at each depth."""
    page = style.figure(10, 3.6)
    left, right = page.subplots(1, 2)
    x = [row["depth"] for row in depths]
    style.quiet(left, "Purity over the tree", "depth in the tree (right: the labels)", "share of images")
    left.plot(x, [row["purity"] for row in depths], "o-", color=style.SERIES[0], label="clusters")
    left.plot(x, [row["chance"] for row in depths], "o--", color=style.QUIET, label="all images in one cluster")
    left.set_ylim(0, 1.04)
    left.legend(frameon=False, fontsize=9)
    style.quiet(right, f"Clusters that are over {100 * threshold:g} % one node", "depth in the tree", "clusters")
    right.bar_label(right.bar(x, [row["pure"] for row in depths], 0.6, color=style.SERIES[2]), fmt="{:,.0f}")
    right.axhline(clusters, color=style.QUIET, linewidth=1, linestyle="--", label=f"all {clusters:,}")
    right.legend(frameon=False, fontsize=9)
    right.set_ylim(0, 1.25 * clusters)
    for axes in (left, right):
        axes.set_xticks(x)
    return page


def _lines(file: Path, columns: int, form: str) -> Iterator[list[str]]:
    """The words of each line that is neither empty nor a comment: two at least, the last may hold spaces."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DeepClusterError(f"{file} cannot be read ({why}): give a text file.") from error
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        words = [word.strip() for word in line.split("\t" if "\t" in line else None, columns - 1)]
        if len(words) < 2:
            raise DeepClusterError(f"Line {number} of {file} is {line!r}: write `{form}` there.")
        yield words


if __name__ == "__main__":
    run_script(with_options(tree))
