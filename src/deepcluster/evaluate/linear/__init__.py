"""Classifiers trained on a network's features: the protocols `linear`, `mlp` and `low-shot`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcluster.evaluate.linear.probe import load_probe

__all__ = ["load_probe"]


def __getattr__(name: str) -> Any:
    if name == "load_probe":
        from deepcluster.evaluate.linear.probe import load_probe

        return load_probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
