"""`deepcluster evaluate RUN|BACKBONE PROTOCOL --data S [--test S2]`. What each protocol takes is in cli/protocols."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from deepcluster.cli.common import several_processes
from deepcluster.cli.parse import parse
from deepcluster.config import nearest
from deepcluster.data.open import must_exist
from deepcluster.distributed import ProcessGroup
from deepcluster.errors import DeepClusterError

PROTOCOLS = {
    "clusters": "Clusters",
    "knn": "Knn",
    "linear": "Linear",
    "low-shot": "LowShot",
    "mlp": "Mlp",
    "voc-classification": "VOCClassification",
    "retrieval": "Retrieval",
    "voc-detection": "VocDetection",
    "voc-segmentation": "VocSegmentation",
}
"""Name -> the class of its options; each has its own file in cli/protocols with a function `score`."""

SHARED = ("clusters", "knn")
"""Protocols that several processes may work on: they share the images, and the first one writes."""


def command(arguments: list[str]) -> None:
    """Evaluates, prints the table, and leaves PROTOCOL.json in the run's evaluation folder."""
    arguments = _backbone_first(arguments)
    words = [word for word in arguments if not word.startswith("-")]
    protocol = words[1] if len(words) > 1 else ""
    if protocol not in PROTOCOLS:
        _no_protocol(protocol, arguments)
        return
    module, options = _module(protocol)
    chosen: Any = parse(options, arguments, prog=f"deepcluster evaluate RUN {protocol}")
    for named in (chosen.source, getattr(chosen, "test", None)):
        must_exist(named)
    with several_processes() as group:
        if not group.is_single and protocol not in SHARED:
            raise DeepClusterError(
                f"Protocol {protocol} runs in one process, not in {group.size}: start it without torchrun."
            )
        _score(module, chosen, group)


def _score(module: Any, chosen: Any, group: ProcessGroup) -> None:
    from deepcluster.engine.log import Screen
    from deepcluster.engine.run import load_subject

    screen = Screen(quiet=not group.is_first, stderr=chosen.json)
    subject = load_subject(
        chosen.model,
        device=chosen.device,
        image_size=chosen.image_size,
        untrained=chosen.untrained,
        seed=chosen.seed,
        results=chosen.out,
        group=group,
    )
    result = module.score(subject, chosen, screen)
    if not group.is_first:
        return
    file = result.save(subject.results)
    if chosen.json:
        print(result.json())
    else:
        screen.console.print(result.table())
        screen.say(f"{file} holds them with all settings")


def _backbone_first(arguments: list[str]) -> list[str]:
    """`PROTOCOL --backbone NAME` as `NAME PROTOCOL`.

    Raises:
        DeepClusterError: a name is missing.
    """
    for position, word in enumerate(arguments):
        if word == "--backbone":
            if position + 1 == len(arguments):
                raise DeepClusterError("--backbone needs a name, such as timm:resnet50.a1_in1k.")
            return [arguments[position + 1], *arguments[:position], *arguments[position + 2 :]]
        if word.startswith("--backbone="):
            return [word.partition("=")[2], *arguments[:position], *arguments[position + 1 :]]
    return arguments


def _module(protocol: str) -> tuple[Any, Any]:
    module = import_module(f"deepcluster.cli.protocols.{protocol.replace('-', '_')}")
    return module, getattr(module, PROTOCOLS[protocol])


def _no_protocol(protocol: str, arguments: list[str]) -> None:
    """The list of protocols, or one sentence."""
    asked = "-h" in arguments or "--help" in arguments
    if asked or not protocol:
        print("usage: deepcluster evaluate RUN|BACKBONE PROTOCOL --data S [--test S2] [--json]\n\nprotocols:")
        for name in PROTOCOLS:
            about = " ".join((_module(name)[1].__doc__ or "").split()).partition(". ")[0]
            print(f"  {name:<20}{about}")
        print("\n`deepcluster evaluate RUN PROTOCOL --help` lists a protocol's options.")
        if asked:
            return
        raise DeepClusterError("The protocol is missing: deepcluster evaluate RUN clusters|knn|... --data S.")
    raise DeepClusterError(
        f"There is no protocol {protocol!r}.{nearest(protocol, list(PROTOCOLS))}"
        " `deepcluster evaluate --help` lists them."
    )
