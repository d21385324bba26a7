"""`deepcluster visualize RUN|BACKBONE PICTURE`.

The options of a picture are the parameters of its function in `visualize`.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.cli.common import take_name
from deepcluster.cli.options import Function, parse_options
from deepcluster.data.open import must_exist

if TYPE_CHECKING:
    from deepcluster.engine.subject import Subject

ANY_NETWORK = ("untrained", "image_size", "seed")
PICTURES: dict[str, tuple[str, ...]] = {
    "filters": ANY_NETWORK,
    "activations": ANY_NETWORK,
    "top-images": ANY_NETWORK,
    "neighbors": ("image_size",),
    "clusters": (),
    "sizes": (),
    "purity": (),
    "confusion": (),
    "history": (),
    "map": ANY_NETWORK,
    "compare": ("image_size",),
}
"""Each picture NAME is `deepcluster.visualize.NAME:draw_NAME`. The values are the options of `load` that it has; those
without any are pictures of runs alone."""


def load(
    model: str,
    /,
    *,
    untrained: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> Subject:
    """Opens the network to draw; its parameters are the options that pictures share.

    Args:
        model: a run folder; for some pictures also a file of weights or a backbone (timm:NAME, torchvision:NAME, or
            with --untrained alexnet, vgg16, convnet).
        untrained: draw the same network with random weights.
        image_size: for a backbone by name: side of its input images in pixels; None = the size its weights were
            trained at.
        out: folder for the PNG files; None = RUN/pictures, or evaluations/NAME/pictures for a network that is not a
            run.
    """
    from deepcluster.engine.run import load_subject

    return load_subject(model, device=device, image_size=image_size, untrained=untrained, seed=seed)


def command(arguments: list[str]) -> None:
    """Draws the picture and prints the paths of its files."""
    functions = {name: _draw(name) for name in PICTURES}
    name, arguments = take_name(arguments, functions, "deepcluster visualize", "picture", "[--data S] [--out FOLDER]")
    if name is None:
        return
    draw, opening = functions[name], Function(f"{__name__}:load", set(ANY_NETWORK) - set(PICTURES[name]))
    values = parse_options([draw, opening], arguments, prog=f"deepcluster visualize RUN {name}")
    must_exist(values.get("data"))
    model = Path(values["model"])
    size = {"image_size": None} if name == "compare" and _has_size(model) else {}
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=values["json"])
    subject = opening.call(values | size)
    folder = values["out"] or getattr(subject, "folder", subject.results) / "pictures"
    files = draw.call(values, subject=subject, run=subject, screen=screen, folder=folder)
    if values["json"]:
        print(dumps({"pictures": [str(file) for file in files]}))
    else:
        for file in files:
            screen.say(str(file))


def _draw(name: str) -> Function:
    module = name.replace("-", "_")
    return Function(f"deepcluster.visualize.{module}:draw_{module}", ("subject", "run", "screen", "folder"))


def _has_size(model: Path) -> bool:
    """Whether the size of the input images is saved with the network; --image-size of compare is then for the other."""
    return (model / "run.json").is_file() or model.is_file()
