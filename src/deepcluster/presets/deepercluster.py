"""DeeperCluster's presets, and RotNet's, from which it starts."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.config import BackboneParams, DataParams, OptimizerParams, TrainRun
from deepcluster.methods.params import DeeperClusterParams
from deepcluster.presets.deepcluster import CONVNET as DEEPCLUSTER_CONVNET
from deepcluster.presets.deepcluster import RESNET18 as DEEPCLUSTER_RESNET18
from deepcluster.presets.preset import Preset
from deepcluster.presets.tiny import DEEPCLUSTER as TINY_DEEPCLUSTER

_ROTATIONS_ONLY = DeeperClusterParams(k=1, super_clusters=1, whiten=256)

VGG16 = Preset(
    TrainRun(
        epochs=100,
        batch_size=3072,
        image_size=224,
        method=DeeperClusterParams(),
        optimizer=OptimizerParams(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-5, schedule="constant"),
        backbone=BackboneParams(name="vgg16", sobel="deepercluster"),
    ),
    """VGG-16 with batch-norm on Sobel-filtered images, rotated and clustered, as in the paper (arXiv 1905.01278).

    Source: the paper's section 4 and the published configuration (facts only): 64 GPUs with 48 images each, 4
        super-clusters x 4 rotations = 16 super-classes of 80,000 sub-classes, a new clustering every 3 epochs. Start
        from a network that was trained on rotations: --backbone.weights runs/rotnet/model.safetensors.
    Command: torchrun --nnodes 8 --nproc-per-node 8 -m deepcluster train deepercluster-vgg16 --data yfcc100m.json
        --out runs/deeper
    Cost: not reported; `deepcluster plan` estimates it for a machine.
    Score: ImageNet fine-tuned 74.9 % (from scratch 74.1 %), for 96 million images (the paper's figures).
    """,
)

RESNET18 = Preset(
    replace(
        DEEPCLUSTER_RESNET18.run,
        method=DeeperClusterParams(k=1_000, super_clusters=4, whiten=256),
        data=DataParams(crop_scale=(0.2, 1.0)),
        backbone=BackboneParams(name="resnet18", sobel="deepercluster"),
    ),
    """ResNet-18 on Sobel-filtered images, rotated and clustered, for photos that nobody has sorted.

    Source: our own values; the method is the paper's (arXiv 1905.01278). Better from a `rotnet-resnet18` run:
        --backbone.weights runs/rotnet/model.safetensors.
    Command: deepcluster train deepercluster-resnet18 --data photos/ --out runs/photos --method.k 400
    Cost and score: not measured.
    """,
)

CONVNET = Preset(
    replace(
        DEEPCLUSTER_CONVNET.run,
        method=DeeperClusterParams(k=1_000, super_clusters=4, reassign=2.0, whiten=128, head="centroids"),
    ),
    """A small ConvNet for small images such as CIFAR-10, rotated and clustered, to compare with `deepcluster-convnet`.

    Source: our own values; network, views and optimizer are those of `deepcluster-convnet`, to compare methods. With
        --method.rotations False only clusters are predicted.
    Command: deepcluster train deepercluster-convnet --data "cifar10/train-*.tar" --out runs/cifar-deeper
    Cost and score: see docs/measured.md.
    """,
)

ROTNET_VGG16 = Preset(
    replace(VGG16.run, method=_ROTATIONS_ONLY),
    """VGG-16 trained to predict by how many quarter turns an image was rotated, DeeperCluster's beginning.

    Source: RotNet (arXiv 1803.07728) as the case of one cluster; values of `deepercluster-vgg16`.
    Command: deepcluster train rotnet-vgg16 --data yfcc100m.json --out runs/rotnet --processes 8
    Cost and score: not measured.
    """,
)

ROTNET_RESNET18 = Preset(
    replace(RESNET18.run, method=_ROTATIONS_ONLY),
    """ResNet-18 trained to predict by how many quarter turns a photo was rotated.

    Source: RotNet (arXiv 1803.07728) as the case of one cluster; values of `deepercluster-resnet18`.
    Command: deepcluster train rotnet-resnet18 --data photos/ --out runs/rotnet
    Cost and score: not measured.
    """,
)

ROTNET_CONVNET = Preset(
    replace(CONVNET.run, method=replace(_ROTATIONS_ONLY, whiten=128)),
    """A small ConvNet trained to predict by how many quarter turns a small image was rotated.

    Source: RotNet (arXiv 1803.07728) as the case of one cluster; values of `deepercluster-convnet`.
    Command: deepcluster train rotnet-convnet --data "cifar10/train-*.tar" --out runs/cifar-rotnet
    Cost and score: see docs/measured.md.
    """,
)

TINY = Preset(
    replace(
        TINY_DEEPCLUSTER.run,
        method=DeeperClusterParams(k=20, super_clusters=2, reassign=1.0, whiten=32, head_lr=0.02),
    ),
    """DeeperCluster on the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: our own values, with the network and the views of `tiny-deepcluster`.
    Command: deepcluster train tiny-deepercluster --data digits --out runs/digits-deeper
    Cost and score: see docs/measured.md.
    """,
)

TINY_ROTNET = Preset(
    replace(TINY.run, method=replace(_ROTATIONS_ONLY, whiten=32, head_lr=0.02)),
    """Telling quarter turns of the handwritten digits that come with scikit-learn, in under a minute on two cores.

    Source: RotNet (arXiv 1803.07728) as the case of one cluster; values of `tiny-deepercluster`.
    Command: deepcluster train tiny-rotnet --data digits --out runs/digits-rotnet
    Cost and score: see docs/measured.md.
    """,
)
