"""The clustering algorithms by the names of `--algorithm`, with the options of each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.errors import DeepClusterError

K_MEANS = {"k": "n_clusters", "iterations": "max_iter", "seed": "random_state"}
ALGORITHMS: dict[str, tuple[str, dict[str, str]]] = {
    "kmeans": ("deepcluster.clustering.kmeans:KMeans", K_MEANS),
    "hierarchical": ("deepcluster.clustering.hierarchical:HierarchicalKMeans", {**K_MEANS, "branches": "branches"}),
    "temi": ("deepcluster.clustering.temi:TEMI", K_MEANS),
    "pic": (
        "deepcluster.clustering.pic:PIC",
        {
            "iterations": "max_iter",
            "neighbors": "n_neighbors",
            "sigma": "sigma",
            "alpha": "alpha",
            "version": "version",
        },
    ),
}
"""Name -> where its class is, and its options with the parameters of the class that they set."""


def needs_k(algorithm: str) -> bool:
    """Whether the algorithm must be told the number of clusters; PIC finds it."""
    return "k" in ALGORITHMS[algorithm][1]


def check_options(algorithm: str, options: dict[str, Any]) -> None:
    """Refuses options of another algorithm, by their names on the command line.

    Raises:
        DeepClusterError: the first of them, fewer than one cluster, or no such algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise DeepClusterError(f"There is no algorithm {algorithm!r}: take one of {', '.join(ALGORITHMS)}.")
    if options.get("k", 1) < 1:
        raise DeepClusterError(f"--k is {options['k']}: ask for at least 1 cluster, or leave it out.")
    for name in sorted(set(options) - set(ALGORITHMS[algorithm][1])):
        raise DeepClusterError(f"--{name} is not an option of {algorithm}: leave it out or change --algorithm.")


def make_clusterer(algorithm: str, options: dict[str, Any], *, seed: int = 0, group: ProcessGroup = SINGLE) -> Any:
    """The clusterer with these options; other parameters keep the defaults of its class.

    Args:
        seed: of all random draws, unless the options hold one.

    Raises:
        DeepClusterError: several processes, and an algorithm that runs in one.
    """
    where, names = ALGORITHMS[algorithm]
    module, _, name = where.partition(":")
    parameters = {names[option]: value for option, value in options.items()}
    if "seed" in names:
        parameters = {"random_state": seed} | parameters
    kind = getattr(import_module(module), name)
    if "group" in kind().get_params():
        parameters["group"] = group
    elif not group.is_single:
        raise DeepClusterError(f"{name} runs in one process, not in {group.size}: start it without torchrun.")
    return kind(**parameters)
