"""Presets that finish in under a minute on two CPU cores."""

from __future__ import annotations

from deepcluster.presets.preset import Preset
from deepcluster.settings import BackboneParams, DataParams, DeepClusterParams, OptimizerParams, TrainRun

DEEPCLUSTER = Preset(
    TrainRun(
        epochs=40,
        batch_size=128,
        image_size=16,
        method=DeepClusterParams(k=50, whiten=64),
        optimizer=OptimizerParams(name="sgd", lr=0.05, weight_decay=1e-5),
        data=DataParams(crop_scale=None, flip=0.0, rotate=12, translate=0.1, zoom=(0.85, 1.15), shear=10),
        backbone=BackboneParams(name="convnet"),
    ),
    """DeepCluster on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values.
    Command: deepcluster train tiny-deepcluster --data digits --out runs/digits
    """,
)
