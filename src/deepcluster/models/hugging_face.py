"""Networks in folders as the Hugging Face hub has them: config.json and weights, in the form of timm.

Nothing in such a folder is run, and nothing outside it is read that its config.json names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch

from deepcluster.errors import DeepClusterError, first_line
from deepcluster.io import write_json, write_safetensors
from deepcluster.models.backbone import Backbone
from deepcluster.models.pretrained import hub_answers
from deepcluster.models.resnet import RESNETS
from deepcluster.models.timm_backbone import NOT_LAYERS, create
from deepcluster.models.torch_files import read_torch
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import judged, read_json, read_tensors, read_text, require_finite

HUB = "hf:"
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
ADVICE = "give the whole folder, as timm's save_for_hf or push_to_hf_hub wrote it."
KEPT = ("input_size", "fixed_input_size", "pool_size", "mean", "std", "num_classes", "classifier", "first_conv")
"""What is taken over of `pretrained_cfg`; all else says where weights lie, or only concerns classification."""


def is_folder(path: Path | str) -> bool:
    """Whether `path` is such a folder, and not a run of ours."""
    path = Path(path)
    return (path / CONFIG).is_file() and not (path / "run.json").exists()


def load_folder(folder: Path | str, image_size: int | None = None) -> Backbone:
    """The network in a folder that timm wrote, without its classifier, in eval mode, on the CPU.

    Args:
        image_size: side of the images it is to see, in pixels; None = that of its config. Embeddings of positions are
            fitted to it, as timm does.

    Raises:
        DeepClusterError: a folder of transformers or of something else, or one that is not whole or is damaged.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with judged(folder, ADVICE):
        about, options = dict(config["pretrained_cfg"]), dict(config.get("model_args") or {})
        # timm before 1.0.31 left there the classes and the size of the weights that training had begun with
        about["num_classes"] = config.get("num_classes", about["num_classes"])
        channels, side = about["input_size"][0], np.ravel(options.get("img_size") or about["input_size"])[-1]
        about["input_size"] = [channels, int(side), int(side)]
        if channels != 3:
            raise ValueError(f"its network sees images of {channels} channels, and ours have 3")
        options = {"global_pool": about.get("global_pool"), **options}
        for name in ("img_size", "in_chans", "num_classes", "pretrained"):
            options.pop(name, None)
        options = {name: value for name, value in options.items() if value is not None and name not in NOT_LAYERS}
        size, name = int(image_size or side), str(config["architecture"])
        looks = {part: about[part] for part in ("mean", "std") if about.get(part)}
        with torch.random.fork_rng(devices=[]):
            try:
                backbone = build_backbone(f"timm:{name}", image_size=size, **looks, **options)
            except DeepClusterError as error:
                raise ValueError(str(error)) from error
            kept = {part: about[part] for part in KEPT if about.get(part) is not None}
            kept["state_dict"] = _read_weights(folder)
            options |= {"num_classes": about["num_classes"], "pretrained": True, "pretrained_cfg": kept}
            # with its classifier, since timm then insists on all names: without, it would let some stay random
            whole = create(name, size, **options)
        there = whole.state_dict()
        backbone.trunk.load_state_dict({part: there[part] for part in backbone.trunk.state_dict()})
    return backbone.eval()


def architecture(backbone: Backbone) -> str | None:
    """What timm calls this network; None where it has none like it."""
    import timm

    if backbone.config["sobel"] != "none":
        return None
    name = backbone.name.partition(":")[2] or backbone.name
    if name in RESNETS:  # timm's have torchvision's layers, by the same names
        return name if backbone.torchvision and not _options(backbone) else None
    theirs = hasattr(backbone.trunk, "pretrained_cfg")
    return name.partition(".")[0] if theirs and timm.is_model(name) else None


def write_folder(backbone: Backbone, folder: Path) -> None:
    """Writes config.json and model.safetensors into `folder`, which `load_folder` reads, and timm by
    `create_model("local-dir:FOLDER", pretrained=True)`: a network without a classifier, with the `image_size` and
    normalization that it was trained with.

    Args:
        backbone: one that has an `architecture`.
    """
    name, size, options = str(architecture(backbone)), backbone.image_size, _options(backbone)
    with torch.random.fork_rng(devices=[]):
        network = create(name, size, num_classes=0, **options)
    network.load_state_dict(backbone.trunk.state_dict())
    about = {part: network.pretrained_cfg[part] for part in KEPT if network.pretrained_cfg.get(part) is not None}
    about |= {"input_size": [3, size, size], "mean": list(backbone.mean), "std": list(backbone.std), "num_classes": 0}
    about |= {"interpolation": "bilinear", "crop_mode": "center", "crop_pct": 1.0 if size <= 64 else 224 / 256}
    config = {"architecture": name, "num_classes": 0, "num_features": backbone.dim, "model_args": options}
    write_json(folder / CONFIG, config | {"pretrained_cfg": about})
    write_safetensors(folder / WEIGHTS[0], network.state_dict(), {"format": "pt"})


def _options(backbone: Backbone) -> dict[str, Any]:
    own = ("name", "sobel", "image_size", "mean", "std", "stem")
    return {part: value for part, value in backbone.config.items() if part not in own}


def describe(folder: Path | str) -> str:
    """What is said of the network in such a folder: its name, licence and place.

    Raises:
        DeepClusterError: see `load_folder`.
    """
    config, card = _read_config(Path(folder)), Path(folder) / "README.md"
    about = config["pretrained_cfg"]
    licence = about.get("license") if isinstance(about, dict) else None
    if not licence and card.is_file():
        with suppress(DeepClusterError):
            found = re.search(r"^license: *([\w.-]+)", read_text(card, advice=ADVICE), re.M)
            licence = found[1] if found else None
    return f"{config['architecture']} from the folder {folder} ({licence or 'which does not tell its licence'})"


def fetch(name: str, wanted: Sequence[str]) -> Path:
    """The folder of `hf:NAME?revision=main`, a repository of models on the hub, whose files are downloaded once.

    Args:
        wanted: names of the files that are taken beside config.json and the weights.

    Raises:
        DeepClusterError: there is no such repository, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    repo, _, query = name.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"revision"}:
        raise DeepClusterError(f"{HUB}{repo} has no option {min(unknown)!r}: it takes revision.")
    safe, pickled = WEIGHTS
    more: dict[str, Any] = {"revision": options.get("revision"), "local_files_only": not hub_answers()}
    try:
        folder = Path(snapshot_download(repo, allow_patterns=[CONFIG, safe, *wanted], **more))
        if not any((folder / file).is_file() for file in (safe, *wanted)):
            folder = Path(snapshot_download(repo, allow_patterns=[CONFIG, pickled], **more))
    except Exception as error:  # of the connection, the hub, the disk
        raise DeepClusterError(
            f"{HUB}{repo} could not be fetched ({first_line(error)}): give a folder, or a repository such as we/photos."
        ) from None
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG, advice=ADVICE)
    if "architecture" not in config:
        kind = config.get("model_type")
        what = f"a network of transformers (model_type {kind})" if kind else "something else than a network"
        raise DeepClusterError(
            f"{folder} holds {what}, and folders that timm wrote are what is read: give the network in timm's form, by"
            " a name such as timm:vit_small_patch14_dinov2.lvd142m or a folder of timm."
        )
    if "pretrained_cfg" not in config:  # as timm wrote it at first
        config = {"architecture": config["architecture"], "pretrained_cfg": config}
    return config


def _read_weights(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise DeepClusterError(f"{folder} has no {' or '.join(WEIGHTS)}: {ADVICE}")
    if file.suffix == ".safetensors":
        return read_tensors(file, advice=ADVICE)[1]
    found = read_torch(file)
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise DeepClusterError(f"{file} holds other things than tensors by name: {ADVICE}")
    require_finite(found, file)
    return dict(found)
