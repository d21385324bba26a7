"""Presets of DeepCluster-v2 and SwAV, two methods of one paper with the same network, views and schedule."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.config import BackboneParams, DataParams, OptimizerParams, TrainRun
from deepcluster.methods.params import DeepClusterV2Params, SwAVParams
from deepcluster.presets.deepcluster import CONVNET as DEEPCLUSTER_CONVNET
from deepcluster.presets.preset import Preset
from deepcluster.presets.tiny import DEEPCLUSTER as TINY_DEEPCLUSTER

_MULTI_CROP = DataParams(
    views=2,
    small_views=6,
    small_view_size=96,
    crop_scale=(0.14, 1.0),
    small_crop_scale=(0.05, 0.14),
    jitter=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    gray=0.2,
    blur=0.5,
)

SWAV_RESNET50 = Preset(
    TrainRun(
        epochs=800,
        batch_size=4096,
        image_size=224,
        method=SwAVParams(),
        optimizer=OptimizerParams(name="lars", lr=4.8, momentum=0.9, weight_decay=1e-6, schedule="cosine", warmup=10.0),
        data=_MULTI_CROP,
        backbone=BackboneParams(name="resnet50"),
    ),
    """ResNet-50 by swapped predictions on two large and six small views, as in the paper (arXiv 2006.09882).

    Source: the paper's section 4 and its appendix on training; 64 GPUs with 64 images each. The rate ends at 0 where
        theirs ends at a thousandth of its largest value.
    Command: torchrun --nnodes 8 --nproc-per-node 8 -m deepcluster train swav-resnet50 --data imagenet/train
        --out runs/swav
    Cost: not known to us for our own; `deepcluster plan` estimates it for a machine.
    Score: ImageNet linear probe 75.3 % after 800 epochs, 74.6 after 400, 73.9 after 200, 72.1 after 100 (theirs).
    """,
)

DEEPCLUSTER_V2_RESNET50 = Preset(
    replace(SWAV_RESNET50.run, method=DeepClusterV2Params()),
    """ResNet-50 by DeepCluster-v2 on two large and six small views, as in the paper (arXiv 2006.09882).

    Source: the paper's comparison of its method with DeepCluster-v2 and the appendix on it: network, views and
        schedule are those of `swav-resnet50`, three clusterings of 3,000 clusters of the embeddings in memory.
    Command: torchrun --nnodes 8 --nproc-per-node 8 -m deepcluster train deepcluster-v2-resnet50 --data imagenet/train
        --out runs/v2
    Cost: not known to us for our own; `deepcluster plan` estimates it for a machine.
    Score: ImageNet linear probe 75.2 % after 800 epochs; 74.3 after 400 with 2 x 160 and 4 x 96 pixels, 70.2 after 400
        with two views only (their figures).
    """,
)

SWAV_RESNET18 = Preset(
    replace(
        SWAV_RESNET50.run,
        epochs=200,
        batch_size=256,
        method=SwAVParams(k=1_000, queue_size=3_840),
        optimizer=replace(SWAV_RESNET50.run.optimizer, lr=0.6, warmup=0.0),
        backbone=BackboneParams(name="resnet18"),
    ),
    """ResNet-18 by swapped predictions for a folder of photos, on one GPU.

    Source: the paper's values for batches of 256 images (arXiv 2006.09882, section on small batches: lr .6, a queue of
        3,840 embeddings from epoch 15); the network and 1,000 prototypes are ours.
    Command: deepcluster train swav-resnet18 --data photos/ --out runs/photos --method.k 200
    Cost and score: not measured.
    """,
)

DEEPCLUSTER_V2_RESNET18 = Preset(
    replace(SWAV_RESNET18.run, method=DeepClusterV2Params(k=1_000)),
    """ResNet-18 by DeepCluster-v2 for a folder of photos, on one GPU; set --method.k to ten times the kinds in it.

    Source: our own values, those of `swav-resnet18` with the paper's three clusterings (arXiv 2006.09882).
    Command: deepcluster train deepcluster-v2-resnet18 --data photos/ --out runs/photos --method.k 200
    Cost and score: not measured.
    """,
)

SWAV_CONVNET = Preset(
    replace(
        DEEPCLUSTER_CONVNET.run,
        method=SwAVParams(k=512, hidden=256, freeze_epochs=0.2, reassign=4.0),
        data=replace(DEEPCLUSTER_CONVNET.run.data, views=2),
    ),
    """A small ConvNet for small images such as CIFAR-10 by swapped predictions, to compare with `deepcluster-convnet`.

    Source: our own values; network, views (two of each image) and optimizer are those of `deepcluster-convnet`.
    Command: deepcluster train swav-convnet --data "cifar10/train-*.tar" --out runs/cifar-swav
    Cost and score: see docs/measured.md.
    """,
)

DEEPCLUSTER_V2_CONVNET = Preset(
    replace(
        SWAV_CONVNET.run,
        method=DeepClusterV2Params(k=500, hidden=256),
    ),
    """A small ConvNet for small images such as CIFAR-10 by DeepCluster-v2, to compare with `deepcluster-convnet`.

    Source: our own values; network, views and optimizer are those of `swav-convnet`.
    Command: deepcluster train deepcluster-v2-convnet --data "cifar10/train-*.tar" --out runs/cifar-v2
    Cost and score: see docs/measured.md.
    """,
)

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
