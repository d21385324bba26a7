"""DeepCluster's presets: the paper's two networks, two ResNets for photos, and a small network for small images."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.config import BackboneParams, DataParams, OptimizerParams, TrainRun, override
from deepcluster.methods.params import DeepClusterParams
from deepcluster.presets.preset import Preset

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

ALEXNET_RGB = Preset(
    replace(ALEXNET.run, backbone=BackboneParams(name="alexnet")),
    """AlexNet with batch-norm on raw colors, the paper's other input (arXiv 1807.05520).

    Source: the paper's figure of first-layer filters, learned on raw colors beside Sobel-filtered ones: most of them
        see only color, which is why the paper's scores are of the latter. All other values as in deepcluster-alexnet.
    Command: deepcluster train deepcluster-alexnet-rgb --data imagenet/train --out runs/alexnet-rgb
    Cost: as deepcluster-alexnet; reading colors is not dearer than Sobel.
    Score: not known to us; expect less than deepcluster-alexnet.
    """,
)

ALEXNET_UNCURATED = Preset(
    replace(ALEXNET.run, method=DeepClusterParams(k=10_000)),
    """AlexNet on Sobel-filtered images of an uncurated set, the paper's YFCC100M experiment (arXiv 1807.05520).

    Source: the paper's comparison of ImageNet with photos from YFCC100M, which no one sorted into kinds: the same
        values on other images, k = 10,000 as before.
    Command: deepcluster train deepcluster-alexnet-uncurated --data "yfcc100m/*.tar" --out runs/uncurated
    Cost: as deepcluster-alexnet for as many images.
    Score: transfer to Pascal VOC, last layers / all layers: classification 67.3/69.3 mAP, detection 45.6/53.0 mAP,
        segmentation 39.2/42.2 mIoU (the paper's figures; from ImageNet 72.0/73.7, 51.4/55.4, 43.2/45.1).
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

VGG16_RGB = Preset(
    replace(VGG16.run, backbone=BackboneParams(name="vgg16")),
    """VGG-16 with batch-norm on raw colors (arXiv 1807.05520); exports to torchvision's vgg16_bn.

    Source: the values of deepcluster-vgg16 without its Sobel filters; a choice of ours.
    Command: deepcluster train deepcluster-vgg16-rgb --data imagenet/train --out runs/vgg16-rgb
    Cost: as deepcluster-vgg16.
    Score: not known to us; the paper's figures are of Sobel-filtered images.
    """,
)

PIC_ALEXNET = Preset(
    replace(ALEXNET.run, method=DeepClusterParams(k=0, algorithm="pic")),
    """AlexNet on Sobel-filtered images with power iteration clustering in place of k-means (arXiv 1807.05520).

    Source: the paper's appendix on graph clustering: 5 neighbors, sigma .2, alpha .001; it finds their number itself.
    Command: deepcluster train deepcluster-pic-alexnet --data imagenet/train --out runs/pic
    Cost: not reported; the graph of a million images takes about 1.3 x 10^14 multiplications a clustering.
    Score: none that could be checked; a third of PIC's clusters hold fewer than 10 images, the largest near 3,000.
    """,
)

PIC_VGG16 = Preset(
    replace(VGG16.run, method=DeepClusterParams(k=0, algorithm="pic")),
    """VGG-16 on Sobel-filtered images with power iteration clustering (arXiv 1807.05520).

    Source: the values of `deepcluster-pic-alexnet` on the paper's second network.
    Command: deepcluster train deepcluster-pic-vgg16 --data imagenet/train --out runs/pic-vgg16
    Cost and score: not reported.
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
    Cost and score: see docs/measured.md for a short run on Imagenette.
    """,
)

RESNET18_SOBEL = Preset(
    replace(RESNET18.run, backbone=BackboneParams(name="resnet18", sobel="paper")),
    """ResNet-18 on Sobel-filtered images: as deepcluster-resnet18, for photos whose colors mean nothing.

    Source: our own values; Sobel as in the paper (arXiv 1807.05520 §3.3).
    Command: deepcluster train deepcluster-resnet18-sobel --data photos/ --out runs/photos --method.k 200
    Cost: as deepcluster-resnet18.
    Score: not measured yet.
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

RESNET50_RGB = Preset(
    override(RESNET50.run, {"optimizer.lr": 0.3, "backbone.sobel": "none"}),
    """ResNet-50 on colors with lr .3, OpenSelfSup's variant without Sobel.

    Source: OpenSelfSup's configuration deepcluster/r50 with Sobel taken out and the learning rate raised (facts only;
        8 GPUs with 64 images each); all other values as in deepcluster-resnet50.
    Command: deepcluster train deepcluster-resnet50-rgb --data imagenet/train --out runs/resnet50-rgb
    Cost: not reported.
    Score: ImageNet linear probe 50.4 % on the last layer (their figure; 46.9 % with Sobel).
    """,
)

CONVNET = Preset(
    TrainRun(
        epochs=12,
        batch_size=256,
        image_size=32,
        keep_every=0,
        method=DeepClusterParams(k=2_000, reassign=2.0, whiten=128, iterations=10, head="centroids"),
        optimizer=OptimizerParams(name="adamw", lr=0.003, weight_decay=1e-4, schedule="cosine"),
        data=DataParams(view_size=24, crop_scale=(0.2, 1.0), jitter=0.8, saturation=0.0, hue=0.0),
        backbone=BackboneParams(name="convnet", sobel="paper"),
    ),
    """A small ConvNet for small images such as CIFAR-10, in about five minutes on two CPU cores.

    Source: our own values; Sobel as in the paper (arXiv 1807.05520 §3.3), a cosine classifier set to the cluster
        means in place of the redrawn one, which needs longer runs than this.
    Command: deepcluster train deepcluster-convnet --data "cifar10/train-*.tar" --out runs/cifar
    Cost and score: see docs/measured.md.
    """,
)
