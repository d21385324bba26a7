"""Presets that finish in under a minute on two CPU cores."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.config import BackboneParams, DataParams, OptimizerParams, TrainRun
from deepcluster.methods.params import DeepClusterParams, ODCParams
from deepcluster.presets.preset import Preset

_METHOD = DeepClusterParams(k=20, whiten=32, clusterings=4, ema_decay=0.98, head_lr=0.02)

DEEPCLUSTER = Preset(
    TrainRun(
        epochs=30,
        batch_size=128,
        image_size=8,
        keep_every=0,
        method=_METHOD,
        optimizer=OptimizerParams(name="adamw", lr=0.002, weight_decay=1e-4, schedule="cosine"),
        data=DataParams(crop_scale=None, flip=0.0, rotate=12, translate=0.13, zoom=(0.87, 1.15), shear=6),
        backbone=BackboneParams(name="convnet", options={"widths": [32, 64, 128], "pools": [1, 2]}),
    ),
    """DeepCluster on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values. The digits stay at 8 x 8 pixels; twenty clusters, twice the ten classes; four clusterings
        at once and averaged weights, which reduce the changes from epoch to epoch that so few images bring; a fast
        classifier, which at the backbone's rate would not learn between two clusterings of fourteen steps.
    Command: deepcluster train tiny-deepcluster --data digits --out runs/digits
    Cost and score: see docs/measured.md; clusters are merged to ten by `deepcluster evaluate RUN clusters --k 10`.
    """,
)

PIC = Preset(
    replace(
        DEEPCLUSTER.run,
        method=replace(_METHOD, k=0, algorithm="pic", clusterings=1),
    ),
    """DeepCluster with power iteration clustering on the handwritten digits, in under a minute on two cores.

    Source: our own values, those of `tiny-deepcluster` with one clustering, whose number of clusters is found.
    Command: deepcluster train tiny-deepcluster-pic --data digits --out runs/digits-pic
    Cost and score: see docs/measured.md.
    """,
)

ODC = Preset(
    replace(
        DEEPCLUSTER.run,
        method=ODCParams(k=20, feature_dim=64, hidden=128, dropout=0.0, start="whitened", head_lr=0.02),
    ),
    """ODC on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values, with the network and the views of `tiny-deepcluster`; no dropout and a fast classifier for
        so few steps, and a first clustering of whitened features, since labels that begin badly mend slowly online.
    Command: deepcluster train tiny-odc --data digits --out runs/digits-odc
    Cost and score: see docs/measured.md.
    """,
)
