"""Networks for inference: batch-norm folded into the convolutions before it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepcluster.models.backbone import Backbone
from deepcluster.models.sync_batchnorm import revert_sync_batchnorm

_FOLDABLE: WeakKeyDictionary[nn.Module, list[tuple[str, str]]] = WeakKeyDictionary()
"""Trunk -> its convolutions and the batch-norms that alone read them: networks are traced once, since torch keeps
every graph it makes, and a graph keeps its network until all of memory is searched for cycles."""


def folded(backbone: Backbone, keep: Iterable[str] = ()) -> Backbone:
    """A frozen copy for inference with each batch-norm folded into the convolution before it, at less than two thirds
    of the time on a CPU; submodules keep their paths. A network that cannot be traced is copied as it is.

    Args:
        keep: taps that are to be read as they are.
    """
    inference = copy.deepcopy(backbone).eval().requires_grad_(False)
    revert_sync_batchnorm(inference)
    trunk, kept = inference.trunk, [inference.tap_module(tap) for tap in keep]
    if backbone.trunk not in _FOLDABLE:
        _FOLDABLE[backbone.trunk] = _foldable(trunk)
    for before, after in _FOLDABLE[backbone.trunk]:
        convolution, norm = trunk.get_submodule(before), trunk.get_submodule(after)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        if not any(module is convolution for module in kept):
            trunk.set_submodule(before, fuse_conv_bn_eval(convolution, norm))
            trunk.set_submodule(after, nn.Identity())
    return inference


def _foldable(trunk: nn.Module) -> list[tuple[str, str]]:
    """Paths of each convolution and batch-norm that can be folded; none where the network cannot be traced."""
    try:
        graph = torch.fx.Tracer().trace(trunk)
    except Exception:  # tracing fails in as many ways as there are networks
        return []
    modules = dict(trunk.named_modules())
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm, convolution = modules[str(node.target)], modules[str(before.target)]
        once = called.count(node.target) == 1 and called.count(before.target) == 1
        if once and type(norm) is nn.BatchNorm2d and norm.running_mean is not None and type(convolution) is nn.Conv2d:
            found.append((str(before.target), str(node.target)))
    return found
