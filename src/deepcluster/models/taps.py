"""Reading activations inside a backbone by name, without changing the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from deepcluster.errors import DeepClusterError
from deepcluster.models.backbone import Backbone


@contextmanager
def read_taps(backbone: Backbone, names: str | Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collects the output of the named layers at every forward pass inside the `with` block.

        with read_taps(backbone, ["conv3", "fc7"]) as seen:
            backbone(images)
        seen["conv3"]   # (B, 384, 13, 13)

    The dict holds the activations of the latest forward pass, in the order of depth. Convolutional taps are
    (B, C, H, W) after the ReLU; transformers of timm give what their block gives, mostly (B, tokens, C).
    The hooks are taken away when the block ends, however it ends.

    Raises:
        DeepClusterError: the backbone has no tap of that name.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    seen: dict[str, Tensor] = {}
    handles = []
    for name in wanted:
        if name not in backbone.taps:
            raise DeepClusterError(
                f"Backbone {backbone.name!r} has no tap {name!r}; it has {', '.join(backbone.taps)}."
            )

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    try:
        for name in backbone.taps:
            if name in wanted:
                handles.append(backbone.tap_module(name).register_forward_hook(partial(keep, name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()
