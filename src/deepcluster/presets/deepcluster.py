"""DeepCluster's presets: the paper's two networks, two ResNets for photos, and a small network for small images."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.presets.preset import Preset
from deepcluster.settings import BackboneParams, DataParams, DeepClusterParams, OptimizerParams, TrainRun

ALEXNET = Preset(
    TrainRun(
        epochs=500,
        batch_size=256,
        image_size=224,
        method=DeepClusterParams(k=10_000),
        optimizer=OptimizerParams(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-5, schedule="constant"),
        backbone=BackboneParams(name="alexnet", sobel="paper"),
    ),
    """AlexNet with batch-norm on Sobel-filtered images, as in the paper (arXiv 1807.05520).

    Source: sections 3.3 and 4; 500 epochs are what table 1 took, 200 is the published script's default.
    Command: deepcluster train deepcluster-alexnet --data imagenet/train --out runs/alexnet
    Cost: the paper reports 12 days on one P100 for ImageNet, a third of it k-means.
    Score: linear probe on conv1-5, 10 crops, ImageNet 13.4 32.3 41.0 39.6 38.2 % (the paper's figures).
    """,
)

VGG16 = Preset(
    replace(ALEXNET.run, backbone=BackboneParams(name="vgg16", sobel="paper")),
    """VGG-16 with batch-norm on Sobel-filtered images, as in the paper (arXiv 1807.05520).

    Source: section 4.4 and the tables on detection and retrieval.
    Command: deepcluster train deepcluster-vgg16 --data imagenet/train --out runs/vgg16
    Cost: not reported; about ten times AlexNet's arithmetic per image.
    Score: VOC 2007 detection 65.9 mAP; retrieval Oxford/Paris 61.0/72.0 mAP (the paper's figures).
    """,
)

_COLOR = DataParams(crop_scale=(0.2, 1.0), jitter=0.8, gray=0.2)

RESNET18 = Preset(
    TrainRun(
        epochs=100,
        batch_size=256,
        image_size=224,
        method=DeepClusterParams(k=1_000),
        optimizer=OptimizerParams(name="sgd", lr=0.05, weight_decay=1e-4, schedule="cosine"),
        data=_COLOR,
        backbone=BackboneParams(name="resnet18"),
    ),
    """ResNet-18 in color for a folder of photos; set --method.k to about ten times the kinds you expect.

    Source: our own values; the method is the paper's (arXiv 1807.05520).
    Command: deepcluster train deepcluster-resnet18 --data photos/ --out runs/photos --method.k 200
    Cost and score: see the README's table for a short run on Imagenette.
    """,
)

RESNET50 = Preset(
    TrainRun(
        epochs=200,
        batch_size=512,
        image_size=224,
        method=DeepClusterParams(k=10_000),
        optimizer=OptimizerParams(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-5, schedule="constant"),
        data=DataParams(jitter=1.0, brightness=0.4, contrast=0.4, saturation=1.0, hue=0.5, rotate=2.0, gray=0.2),
        backbone=BackboneParams(name="resnet50", sobel="paper"),
    ),
    """ResNet-50 on Sobel-filtered images, the values of OpenSelfSup's re-implementation.

    Source: OpenSelfSup's configuration deepcluster/r50 (facts only; 8 GPUs with 64 images each).
    Command: deepcluster train deepcluster-resnet50 --data imagenet/train --out runs/resnet50
    Cost: not reported.
    Score: ImageNet linear probe 46.9 % on the last layer, 57.7 % on the fourth stage (their figures); without
        Sobel and with lr .3, 50.4 %.
    """,
)

CONVNET = Preset(
    TrainRun(
        epochs=28,
        batch_size=256,
        image_size=32,
        keep_every=0,
        method=DeepClusterParams(k=2_000, reassign=2.0, whiten=128, iterations=10, head="centroids"),
        optimizer=OptimizerParams(name="adamw", lr=0.003, weight_decay=1e-4, schedule="cosine"),
        data=DataParams(view_size=24, crop_scale=(0.2, 1.0), jitter=0.8, saturation=0.0, hue=0.0),
        backbone=BackboneParams(name="convnet", sobel="paper"),
    ),
    """A small ConvNet for small images such as CIFAR-10, in about ten minutes on two CPU cores.

    Source: our own values; Sobel as in the paper (arXiv 1807.05520 §3.3), a cosine classifier set to the cluster
        means in place of the redrawn one, which needs longer runs than this.
    Command: deepcluster train deepcluster-convnet --data "cifar10/train-*.tar" --out runs/cifar
    Cost and score: see the README's table.
    """,
)
