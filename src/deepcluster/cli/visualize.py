"""`deepcluster visualize RUN WHAT`. What each picture takes is in cli/pictures."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from typing import Any

from deepcluster.cli.parse import parse
from deepcluster.config import nearest
from deepcluster.data.open import must_exist
from deepcluster.errors import DeepClusterError

PICTURES = {
    "filters": "Filters",
    "activations": "Activations",
    "top-images": "TopImages",
    "neighbors": "Neighbors",
    "clusters": "ClusterSheets",
    "sizes": "Sizes",
    "purity": "Purity",
    "confusion": "Confusion",
    "history": "History",
    "map": "Map",
    "compare": "Compare",
}
"""Name -> the class of its options; each has its own file in cli/pictures with a function `draw`."""


def command(arguments: list[str]) -> None:
    """Draws, and says where the pictures are."""
    words = [word for word in arguments if not word.startswith("-")]
    what = words[1] if len(words) > 1 else ""
    if what not in PICTURES:
        _no_picture(what, arguments)
        return
    _, options = _module(what)
    chosen: Any = parse(options, arguments, prog=f"deepcluster visualize RUN {what}")
    must_exist(getattr(chosen, "source", None))
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=chosen.json)
    subject, name = chosen.load(), what.replace("-", "_")
    draw = getattr(import_module(f"deepcluster.visualize.{name}"), f"draw_{name}")
    given = vars(chosen) | {"data": getattr(chosen, "source", None), "screen": screen, "folder": chosen.folder(subject)}
    picture_options = list(inspect.signature(draw).parameters)[1:]
    files = draw(subject, **{option: given[option] for option in picture_options})
    if chosen.json:
        print(json.dumps({"pictures": [str(file) for file in files]}))
    else:
        for file in files:
            screen.say(str(file))


def _module(what: str) -> tuple[Any, Any]:
    module = import_module(f"deepcluster.cli.pictures.{what.replace('-', '_')}")
    return module, getattr(module, PICTURES[what])


def _no_picture(what: str, arguments: list[str]) -> None:
    """The list of pictures, or one sentence."""
    asked = "-h" in arguments or "--help" in arguments
    if asked or not what:
        print("usage: deepcluster visualize RUN|BACKBONE WHAT [--data S] [--out FOLDER]\n\npictures:")
        for name in PICTURES:
            about = " ".join((_module(name)[1].__doc__ or "").split()).rstrip(".")
            print(f"  {name:<14}{about}")
        print("\n`deepcluster visualize RUN WHAT --help` lists a picture's options.")
        if asked:
            return
        raise DeepClusterError("The picture is missing: deepcluster visualize RUN filters|clusters|history|...")
    raise DeepClusterError(
        f"There is no picture {what!r}.{nearest(what, list(PICTURES))} `deepcluster visualize --help` lists them."
    )
