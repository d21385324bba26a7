"""Purity of clusters over a tree of labels, such as WordNet (arXiv 1807.05520, appendix, figure 6).

A cluster of ten breeds of dog is impure by its labels and pure as `dog`. This file knows assignments, labels and a
text file with a tree, and nothing of images.
"""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import DeepClusterError
from deepcluster.studies.study import Row, Study

THRESHOLD = 0.7
"""Share of a cluster's images that one node must hold for the cluster to count as pure."""


@dataclass(frozen=True)
class Tree:
    """Nodes with one parent each.

    Attributes:
        parent: node -> parent; roots are missing.
        names: node -> what people call it; nodes without a name are missing.
        dropped: further parents that the file gave and that are not followed.
    """

    parent: dict[str, str]
    names: dict[str, str]
    dropped: int = 0

    def chain(self, node: str) -> list[str]:
        """From the root down to `node`."""
        found = [node]
        while found[-1] in self.parent:
            found.append(self.parent[found[-1]])
        return found[::-1]

    def name(self, node: str) -> str:
        """The node's name, or itself."""
        return self.names.get(node, node)


def read_tree(file: Path, names: Path | None = None, *, parent_first: bool = False) -> Tree:
    """Reads lines `child parent [name of the child]`; empty lines and what follows a # at a line's start are skipped.

    Columns are separated by tabs or spaces; the name may hold spaces. Where a child has several parents, the one
    named first is followed.

    Args:
        names: lines `node name`, which win over names of the third column.
        parent_first: lines are `parent child`, as in ImageNet's wordnet.is_a.txt.

    Raises:
        DeepClusterError: a file that cannot be read, a line of one word, or a cycle.
    """
    parents: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for number, line in _lines(file):
        words = _words(line, 3)
        if len(words) < 2:
            raise DeepClusterError(f"Line {number} of {file} is {line!r}: write `child parent` there.")
        child, above = (words[1], words[0]) if parent_first else (words[0], words[1])
        if above not in parents.setdefault(child, []):
            parents[child].append(above)
        if len(words) > 2:
            known[child] = words[2]
    if not parents:
        raise DeepClusterError(f"{file} holds no line `child parent`: give a file that holds a tree.")
    try:
        graphlib.TopologicalSorter(parents).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(error.args[1][::-1])
        raise DeepClusterError(f"The tree of {file} goes in a circle ({circle}): remove one of these lines.") from None
    if names is not None:
        for number, line in _lines(names):
            words = _words(line, 2)
            if len(words) < 2:
                raise DeepClusterError(f"Line {number} of {names} is {line!r}: write `node name` there.")
            known[words[0]] = words[1]
    dropped = sum(len(above) - 1 for above in parents.values())
    return Tree({child: above[0] for child, above in parents.items()}, known, dropped)


def paths_of(tree: Tree, classes: Sequence[str], file: Path | str = "the tree") -> list[list[str]]:
    """The chain from the root to each class, found by its id or else by its name.

    Raises:
        DeepClusterError: classes that are not in the tree, or a name of several nodes.
    """
    nodes = set(tree.parent) | set(tree.parent.values())
    called: dict[str, list[str]] = {}
    for node in nodes:
        called.setdefault(tree.name(node), []).append(node)
    missing = [name for name in classes if name not in nodes and name not in called]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DeepClusterError(
            f"{len(missing)} of {len(classes)} classes are not in {file} ({some}): add a line for each, or --names."
        )
    chains = []
    for name in classes:
        meant = [name] if name in nodes else called[name]
        if len(meant) > 1:
            raise DeepClusterError(f"The class {name!r} is the name of {len(meant)} nodes of {file}: use ids instead.")
        chains.append(tree.chain(meant[0]))
    return chains


def purity_over(
    assignment: np.ndarray, labels: np.ndarray, paths: Sequence[Sequence[str]], threshold: float = THRESHOLD
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
        raise DeepClusterError(f"--threshold {threshold:g} must be from 0.5 to below 1: above it a cluster is pure.")
    known = (assignment >= 0) & (labels >= 0)
    if not known.any():
        raise DeepClusterError("No image has both a cluster and a label: give a run whose images have labels.")
    clusters, place = np.unique(assignment[known], return_inverse=True)
    table = np.zeros((len(clusters), len(paths)), np.int64)
    np.add.at(table, (place, labels[known]), 1)
    sizes, leaves = table.sum(1), {path[-1] for path in paths}
    found = [_cluster_row(int(cluster), row, paths) for cluster, row in zip(clusters, table, strict=True)]
    depths: list[Row] = []
    for depth in range(max(map(len, paths))):
        nodes, counts = _at_depth(table, paths, depth)
        majority, most = counts.argmax(1), counts.max(1)
        share = most / sizes
        depths.append(
            {
                "depth": depth,
                "nodes": len(nodes),
                "purity": float(most.sum() / sizes.sum()),
                "chance": float(counts.sum(0).max() / sizes.sum()),
                "pure": int((share > threshold).sum()),
                "pure_share": float((share > threshold).mean()),
            }
        )
        for number in np.flatnonzero(share > threshold):
            node = nodes[majority[number]]
            if node not in leaves:
                found[number] |= {"node": node, "depth": depth, "node_purity": float(share[number])}
    return depths, found


def study_tree(
    run: str,
    assignment: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    tree: Tree,
    file: Path,
    threshold: float = THRESHOLD,
) -> Study:
    """Both tables and their sentence; see `purity_over`."""
    used = sorted(set(labels[labels >= 0].tolist()))
    chains = dict(zip(used, paths_of(tree, [classes[label] for label in used], file), strict=True))
    place = np.full(max(used, default=0) + 2, -1)  # the last stands for -1
    place[used] = np.arange(len(used))
    depths, found = purity_over(assignment, place[labels], [chains[label] for label in used], threshold)
    for row in found:
        row["label"] = classes[used[row["label"]]]
        row["node_name"] = tree.name(row["node"]) if row["node"] else ""
    last = depths[-1]
    tops = {chain[0] for chain in chains.values()}
    described = sum(bool(row["node"]) and row["node"] not in tops for row in found)
    said = (
        f"By their labels {last['pure']:,} of {len(found):,} clusters are pure (one label holds more than"
        f" {threshold:g} of the images), and the purity is {last['purity']:.3f};"
    )
    for row in depths[1:-1]:
        said += (
            f" at depth {row['depth']} {row['pure']:,} are, and it is {row['purity']:.3f} (chance {row['chance']:.3f});"
        )
    said = f"{said[:-1]}. An inner node below the root describes {described:,} of the clusters."
    if tree.dropped:
        said += f" The file gives {tree.dropped:,} further parents, which are not followed."
    about: dict[str, Any] = {
        "run": run,
        "tree": str(file),
        "threshold": threshold,
        "several_parents": "the first one named is followed",
        "depth": "a label above that depth counts as itself",
        "node": f"the deepest inner node that holds more than {threshold:g} of the cluster",
    }
    return Study("tree", said, about, depths, more={"clusters": found})


def _at_depth(table: np.ndarray, paths: Sequence[Sequence[str]], depth: int) -> tuple[list[str], np.ndarray]:
    """The nodes of one depth, in order of first appearance, and (clusters, nodes) counts."""
    of_label = [path[min(depth, len(path) - 1)] for path in paths]
    nodes = list(dict.fromkeys(of_label))
    counts = np.zeros((len(table), len(nodes)), np.int64)
    for label, node in enumerate(of_label):
        counts[:, nodes.index(node)] += table[:, label]
    return nodes, counts


def _cluster_row(cluster: int, counts: np.ndarray, paths: Sequence[Sequence[str]]) -> Row:
    label, size = int(counts.argmax()), int(counts.sum())
    return {
        "cluster": cluster,
        "images": size,
        "label": label,
        "label_purity": float(counts[label] / size),
        "node": "",
        "depth": None,
        "node_purity": None,
    }


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DeepClusterError(f"{file} cannot be read ({why}): give a text file.") from error
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def _words(line: str, most: int) -> list[str]:
    words = line.split("\t", most - 1) if "\t" in line else line.split(None, most - 1)
    return [word.strip() for word in words]
