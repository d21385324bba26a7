"""Any backbone of timm, without its classifier."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepcluster.errors import DeepClusterError, first_line
from deepcluster.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Parts
from deepcluster.models.pretrained import cached_file, hub_answers, packaged_file, packaged_state

NOT_LAYERS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir")
"""Arguments of `timm.create_model` that name files, which no option of a network and no foreign file may do."""


def build_timm(name: str, channels: int, size: int, *, pretrained: bool = False, **options: Any) -> Parts:
    """A model of timm for (channels, size, size) input; its output is what timm pools.

    Args:
        pretrained: published weights, from an installed package or timm's cache, or else as timm fetches them; `mean`
            and `std` are then the ones those weights expect.
        options: passed to `timm.create_model`, such as `drop_path_rate`.

    Taps: the stages that timm lists in `feature_info`, or its blocks or stages; then pool, the output.

    Raises:
        DeepClusterError: an unknown option, a size it cannot take, or weights that cannot be had.
    """
    import timm

    if named := next((option for option in NOT_LAYERS if option in options), None):
        raise DeepClusterError(f"Backbone timm:{name} has no option {named!r}: weights come by --from or --backbone.")
    settings = {"num_classes": 0, "in_chans": channels} | options
    packaged = packaged_file(name) if pretrained and channels == 3 else None
    settings["pretrained"] = pretrained and packaged is None
    expects = timm.get_pretrained_cfg(name) if settings["pretrained"] else None
    if expects is not None and expects.hf_hub_id:
        cached = cached_file(expects.hf_hub_id, expects.hf_hub_filename)
        if cached is not None:  # the hub's own client would ask whether they are still the latest
            settings["pretrained_cfg_overlay"] = {"file": str(cached)}
        elif not hub_answers():  # timm would try for most of a minute
            raise DeepClusterError(
                f"The weights of timm:{name} could not be fetched (they are not in the cache, and the hub does not"
                " answer); connect to the network once, or leave out pretrained."
            )
    try:
        trunk = create(name, size, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise DeepClusterError(
            f"timm cannot build {name!r} for {size} px and {channels} channels with {options}: {error}"
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise DeepClusterError(
            f"The weights of timm:{name} could not be fetched ({first_line(error)}); "
            "connect to the network once, or leave out pretrained."
        ) from error
    if packaged is not None:
        trunk.load_state_dict(packaged_state(packaged, trunk.state_dict()))
    expected: dict[str, Any] = trunk.pretrained_cfg if pretrained else {}
    return Parts(
        trunk,
        # some models keep a hidden layer between pooling and classifier, of another width
        getattr(trunk, "head_hidden_size", None) or trunk.num_features,
        _taps(trunk) | {"pool": ""},
        mean=tuple(expected.get("mean", IMAGENET_MEAN)),
        std=tuple(expected.get("std", IMAGENET_STD)),
    )


def create(name: str, size: int, **settings: Any) -> Any:
    """timm's network; transformers must know the size of images, and others have no such argument."""
    import timm

    try:
        return timm.create_model(name, img_size=size, **settings)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **settings)


def _taps(trunk: nn.Module) -> dict[str, str]:
    """Name -> path of the layers worth reading; timm's own paths serve as names."""
    have = dict(trunk.named_modules())
    listed = [entry["module"] for entry in getattr(trunk, "feature_info", None) or []]
    listed = [path for path in listed if path in have]
    for container in ("blocks", "stages", "layers"):
        if not listed and container in have:
            listed = [f"{container}.{child}" for child, _ in have[container].named_children()]
    return {path: path for path in listed or [child for child, _ in trunk.named_children()]}
