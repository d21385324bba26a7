"""Presets that finish in under a minute on two CPU cores."""

from __future__ import annotations

from deepcluster.presets.preset import Preset
from deepcluster.settings import BackboneParams, DataParams, DeepClusterParams, OptimizerParams, TrainRun

DEEPCLUSTER = Preset(
    TrainRun(
        epochs=30,
        batch_size=128,
        image_size=8,
        keep_every=0,
        method=DeepClusterParams(k=60, whiten=32, clusterings=4, averaging=0.98, head_lr=0.02),
        optimizer=OptimizerParams(name="adamw", lr=0.002, weight_decay=1e-4, schedule="cosine"),
        data=DataParams(crop_scale=None, flip=0.0, rotate=10, translate=0.1, zoom=(0.9, 1.1), shear=5),
        backbone=BackboneParams(name="convnet", options={"widths": [32, 64, 128], "pools": [1, 2]}),
    ),
    """DeepCluster on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values.
    Command: deepcluster train tiny-deepcluster --data digits --out runs/digits
    """,
)
