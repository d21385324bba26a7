"""ODC's presets: the paper's ResNet-50, and the same method on smaller networks."""

from __future__ import annotations

from dataclasses import replace

from deepcluster.config import BackboneParams, OptimizerParams
from deepcluster.methods.params import ODCParams
from deepcluster.presets.deepcluster import CONVNET as DEEPCLUSTER_CONVNET
from deepcluster.presets.deepcluster import RESNET18 as DEEPCLUSTER_RESNET18
from deepcluster.presets.deepcluster import RESNET50 as DEEPCLUSTER_RESNET50
from deepcluster.presets.preset import Preset

RESNET50 = Preset(
    replace(
        DEEPCLUSTER_RESNET50.run,
        epochs=440,
        method=ODCParams(),
        optimizer=OptimizerParams(
            name="sgd", lr=0.06, momentum=0.9, weight_decay=1e-5, schedule="step", step_epochs=400.0, step_factor=0.4
        ),
        backbone=BackboneParams(name="resnet50"),
    ),
    """ResNet-50 by online deep clustering, as in the paper (arXiv 2006.10645).

    Source: the paper and its authors' configuration in OpenSelfSup (odc/r50_v1, facts only; 8 GPUs, 64 images each).
    Command: deepcluster train odc-resnet50 --data imagenet/train --out runs/odc
    Cost: not reported.
    Score: ImageNet linear probe 53.4 % on the last layer, 57.7 % on the last stage's map; VOC07 SVM 78.4 mAP (theirs).
    """,
)

RESNET18 = Preset(
    replace(
        DEEPCLUSTER_RESNET18.run,
        method=ODCParams(k=500),
        optimizer=replace(DEEPCLUSTER_RESNET18.run.optimizer, lr=0.06),
        data=replace(DEEPCLUSTER_RESNET18.run.data, rotate=2.0),
    ),
    """ResNet-18 by online deep clustering, for a folder of photos; set --method.k to about ten times the kinds in it.

    Source: our own values; the method is the paper's (arXiv 2006.10645).
    Command: deepcluster train odc-resnet18 --data photos/ --out runs/photos --method.k 200
    Cost and score: see docs/measured.md, of a short run on Imagenette.
    """,
)

ALEXNET = Preset(
    replace(RESNET50.run, backbone=BackboneParams(name="alexnet")),
    """AlexNet with batch-norm by online deep clustering, in color, as in the paper (arXiv 2006.10645).

    Source: the values of the paper's ResNet-50, since no configuration of its AlexNet was published.
    Command: deepcluster train odc-alexnet --data imagenet/train --out runs/odc-alexnet
    Cost: not reported.
    Score: none that could be checked.
    """,
)

CONVNET = Preset(
    replace(
        DEEPCLUSTER_CONVNET.run,
        method=ODCParams(k=100, feature_dim=128, hidden=256, dropout=0.0, start="whitened", head_lr=0.03),
    ),
    """A small ConvNet for small images such as CIFAR-10, online, to compare with `deepcluster-convnet`.

    Source: our own values; network, views and optimizer are those of `deepcluster-convnet`, to compare methods. From
        scratch, so few epochs are too few for labels that mend step by step: the paper takes 440.
    Command: deepcluster train odc-convnet --data "cifar10/train-*.tar" --out runs/cifar-odc
    Cost and score: see docs/measured.md.
    """,
)
