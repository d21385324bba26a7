"""`deepcluster visualize RUN|BACKBONE PICTURE`.

The options of a picture are the parameters of its function in `visualize`.
"""

from __future__ import annotations

from pathlib import Path

from deepcluster.cli.common import show, take_name
from deepcluster.cli.options import Function, parse_options
from deepcluster.data.open import must_exist

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
"""The options of `open_network` that each picture has; those without any are pictures of runs alone. The function of
picture NAME is `deepcluster.visualize.NAME:draw_NAME`."""


def command(arguments: list[str]) -> None:
    """Draws the picture and prints the paths of its files."""
    functions = {name: _draw(name) for name in PICTURES}
    name, arguments = take_name(arguments, functions, "deepcluster visualize", "picture", "[--data S] [--out FOLDER]")
    if name is None:
        return
    absent = set(ANY_NETWORK) - set(PICTURES[name])
    draw, opening = functions[name], Function("deepcluster.cli.common:open_network", absent)
    values = parse_options([draw, opening], arguments, prog=f"deepcluster visualize RUN {name}")
    must_exist(values.get("data"))
    model = Path(values["model"])
    size = {"image_size": None} if name == "compare" and _has_size(model) else {}
    from deepcluster.engine.log import Screen

    screen = Screen(stderr=values["json"])
    subject = opening.call(values | size)
    folder = values["out"] or getattr(subject, "folder", subject.results) / "pictures"
    from deepcluster.io import require_writable
    from deepcluster.visualize.style import save

    require_writable(folder / f"{name}.png")
    pictures = draw.call(values, subject=subject, run=subject, screen=screen)
    files = [str(save(picture, folder / f"{name}.png")) for name, picture in pictures.items()]
    show(screen, values["json"], {"pictures": files}, "\n".join(files))


def _draw(name: str) -> Function:
    module = name.replace("-", "_")
    return Function(f"deepcluster.visualize.{module}:draw_{module}", ("subject", "run", "screen"))


def _has_size(model: Path) -> bool:
    """Whether the size of the input images is saved with the network; --image-size of compare is then for the other."""
    return (model / "run.json").is_file() or model.is_file()
