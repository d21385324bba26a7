"""`deepcluster evaluate RUN|BACKBONE PROTOCOL --data S [--test S2]`.

The options of a protocol are the parameters of its function in `evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepcluster.cli.common import several_processes, take_name
from deepcluster.cli.options import Function, parse_options
from deepcluster.data.open import must_exist
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    import numpy as np

PROTOCOLS = {
    "clusters": "clusters:clusters",
    "knn": "knn:knn",
    "linear": "linear.linear:linear",
    "low-shot": "linear.low_shot:low_shot",
    "mlp": "linear.mlp:mlp",
    "voc-classification": "voc.classification:voc_classification",
    "retrieval": "retrieval.protocol:retrieval",
    "voc-detection": "voc.detection:voc_detection",
    "voc-segmentation": "voc.segmentation:voc_segmentation",
}
"""The function of each protocol, in `deepcluster.evaluate`."""
DISTRIBUTED = ("clusters", "knn")
"""Protocols that several processes can run together: they share the images, and the first process writes."""
IMAGES = {"test": (), "ground_truth": ("holidays",), "whiten_on": ("same", "none")}
"""Options besides --data that name files or images, and their values that do not."""


def command(arguments: list[str]) -> None:
    """Evaluates, prints the table, and writes PROTOCOL.json into the run's evaluation folder."""
    functions = {
        name: Function(f"deepcluster.evaluate.{target}", ("subject", "run", "screen", "device"))
        for name, target in PROTOCOLS.items()
    }
    name, arguments = take_name(arguments, functions, "deepcluster evaluate", "protocol", "--data S [--test S2]")
    if name is None:
        return
    protocol, opening = functions[name], Function("deepcluster.cli.common:open_network")
    values = parse_options([protocol, opening], arguments, prog=f"deepcluster evaluate RUN {name}")
    must_exist(values["data"])
    for option, other in IMAGES.items():
        must_exist(None if values.get(option) in other else values.get(option))
    # Retrieval draws nothing but the weights of its untrained baseline.
    draws = values["untrained"] or ("seed" in protocol.parameters and values.get("baseline", True))
    if values["seed"] and not draws:
        raise DeepClusterError(f"Protocol {name} draws nothing at random here: leave out --seed.")
    with several_processes() as group:
        if not group.is_single and name not in DISTRIBUTED:
            raise DeepClusterError(
                f"Protocol {name} runs in one process, not in {group.size}: start it without torchrun or srun."
            )
        from deepcluster.engine.log import Screen

        screen = Screen(quiet=not group.is_first, stderr=values["json"])
        subject = opening.call(values)
        subject.group = group
        mark = "" if values["untrained"] else subject.mark
        grouped: list[tuple[np.ndarray, np.ndarray, Sequence[str]]] = []
        result = protocol.call(
            values, subject=subject, run=subject, screen=screen, on_assignment=lambda *found: grouped.append(found)
        )
        if not group.is_first:
            return
    if mark:
        result.settings["model"] = mark
    if values["json"]:  # before they are saved, so that they are seen also where they cannot be kept
        print(result.json())
    else:
        screen.print(result.table())
    file = result.save(subject.results)
    if not values["json"]:
        screen.print(f"{file} holds them with all settings")
    for assignment, labels, names in grouped:
        from deepcluster.visualize import style
        from deepcluster.visualize.confusion import confusion_figure

        file = style.save(confusion_figure(assignment, labels, names), subject.results / "clusters-confusion.png")
        screen.print(f"{file} shows which classes share clusters")
