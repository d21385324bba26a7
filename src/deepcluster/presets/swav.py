"""Presets of DeepCluster-v2 and SwAV, two methods of one paper with the same network, views and schedule."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.methods.params import DeepClusterV2Params, SwAVParams
from deepcluster.presets.preset import Preset
from deepcluster.presets.tiny import DEEPCLUSTER as TINY_DEEPCLUSTER

TINY_DEEPCLUSTER_V2 = Preset(
    replace(
        TINY_DEEPCLUSTER.run,
        method=DeepClusterV2Params(k=20, clusterings=4, feature_dim=64, hidden=128),
        data=replace(TINY_DEEPCLUSTER.run.data, views=2),
    ),
    """DeepCluster-v2 on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values, with the network, the views (two of each image) and the twenty clusters of
        `tiny-deepcluster`.
    Command: deepcluster train tiny-deepcluster-v2 --data digits --out runs/digits-v2
    Cost and score: see docs/measured.md.
    """,
)

TINY_SWAV = Preset(
    replace(
        TINY_DEEPCLUSTER_V2.run,
        method=SwAVParams(k=20, feature_dim=64, hidden=128),
    ),
    """SwAV on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values, with the network and the views of `tiny-deepcluster-v2`.
    Command: deepcluster train tiny-swav --data digits --out runs/digits-swav
    Cost and score: see docs/measured.md.
    """,
)
