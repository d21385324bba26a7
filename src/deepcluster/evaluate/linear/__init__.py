"""Classifiers trained on a network's features: the protocols `linear`, `mlp` and `low-shot`."""

from deepcluster.evaluate.linear.probe import load_probe

__all__ = ["load_probe"]
