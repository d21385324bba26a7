"""`deepcluster evaluate RUN PROTOCOL --data S [--test S2]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse
from deepcluster.data.sources import must_exist
from deepcluster.records import DeepClusterError
from deepcluster.settings import nearest

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.runs import Run
    from deepcluster.evaluate.result import Result


@dataclass(frozen=True)
class Clusters:
    """NMI, AMI, ARI, matched accuracy and purity of a run's clusters against labels nobody showed it."""

    run: Positional[Path]
    """The run folder."""
    protocol: Positional[str]
    """clusters"""
    source: Annotated[str | None, arg(name="data")] = None
    """Labelled images; none = the training images, with the clusters training ended with."""
    k: str | None = None
    """Also cluster the features anew into so many clusters; `classes` = as many as there are classes."""
    draws: int = 1
    """Repetitions of that, each with its own seed."""
    seed: int = 0
    """Seed of the first."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Knn:
    """Top-1 accuracy of the nearest training images, by cosine of the backbone's output."""

    run: Positional[Path]
    """The run folder."""
    protocol: Positional[str]
    """knn"""
    source: Annotated[str | None, arg(name="data")] = None
    """Labelled images to look neighbors up in; none = the training images."""
    test: str | None = None
    """Labelled images to classify; none = each image of the data by all the others."""
    k: tuple[int, ...] = (20,)
    """Numbers of neighbors."""
    tap: str | None = None
    """A layer to read in place of the output."""
    whitened: bool = False
    """Use the features after the run's whitening."""
    baseline: bool = False
    """Also score the same network as it was before training."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object."""


PROTOCOLS: dict[str, type] = {"clusters": Clusters, "knn": Knn}


def command(arguments: list[str]) -> None:
    """Evaluates, prints the table, and leaves RUN/evaluation/PROTOCOL.json."""
    words = [word for word in arguments if not word.startswith("-")]
    protocol = words[1] if len(words) > 1 else ""
    if protocol not in PROTOCOLS:
        if "-h" in arguments or "--help" in arguments or not protocol:
            print("usage: deepcluster evaluate RUN PROTOCOL --data S [--test S2] [--json]\n\nprotocols:")
            for name, kind in PROTOCOLS.items():
                print(f"  {name:<12}{(kind.__doc__ or '').strip()}")
            print("\n`deepcluster evaluate RUN PROTOCOL --help` lists a protocol's options.")
            if "-h" in arguments or "--help" in arguments:
                return
            raise DeepClusterError("The protocol is missing: deepcluster evaluate RUN clusters|knn --data S.")
        raise DeepClusterError(
            f"There is no protocol {protocol!r}.{nearest(protocol, list(PROTOCOLS))}"
            " `deepcluster evaluate --help` lists them."
        )
    chosen = parse(PROTOCOLS[protocol], arguments, prog=f"deepcluster evaluate RUN {protocol}")
    for named in (chosen.source, getattr(chosen, "test", None)):
        must_exist(named)
    from deepcluster.engine.log import Screen
    from deepcluster.engine.runs import load_run

    screen = Screen(stderr=chosen.json)
    run = load_run(chosen.run, chosen.device)
    result = SCORES[protocol](run, chosen, screen)
    result.save(run.folder)
    if chosen.json:
        print(result.json())
    else:
        screen.console.print(result.table())


def _clusters(run: Run, chosen: Any, screen: Screen) -> Result:
    from deepcluster.evaluate.clusters import clusters

    k = int(chosen.k) if chosen.k and chosen.k.isdigit() else chosen.k
    return clusters(run, chosen.source, k=k, draws=chosen.draws, seed=chosen.seed, screen=screen)


def _knn(run: Run, chosen: Any, screen: Screen) -> Result:
    from deepcluster.evaluate.knn import knn

    return knn(
        run,
        chosen.source,
        chosen.test,
        k=chosen.k,
        tap=chosen.tap,
        whitened=chosen.whitened,
        baseline=chosen.baseline,
        screen=screen,
    )


SCORES: dict[str, Callable[..., Any]] = {"clusters": _clusters, "knn": _knn}
