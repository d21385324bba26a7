"""The checkpoints of AlexNet and VGG-16 that DeepCluster's authors published, read and written.

Such a file is a dict of epoch, arch, state_dict and optimizer, as `torch.save` writes it. Its names are mapped to
ours one by one, in the tables below; neither order nor shape is asked what a tensor might be.

What the authors' networks have and ours have not: a ReLU at the end of `classifier` (here the classifier over clusters
begins with it), that classifier as `top_layer`, and the Sobel filters as convolutions `sobel.0` (gray) and `sobel.1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepcluster.errors import DeepClusterError
from deepcluster.io import write_torch
from deepcluster.models.alexnet import DIM, ConvThenLinear
from deepcluster.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from deepcluster.models.sobel import EDGES, input_layer
from deepcluster.models.torch_files import read_torch
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import require_finite

IMAGE_SIZE = 224

# Numbers of the layers with weights; with us each lies in the trunk under the same name. A batch-norm follows each
# convolution.
_CONVOLUTIONS = {"alexnet": (0, 4, 8, 11, 14), "vgg16": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)}
_LINEAR = {"alexnet": (1, 4), "vgg16": (0, 3)}
LAYERS = {
    arch: [f"features.{number + norm}" for number in numbers for norm in (0, 1)]
    + [f"classifier.{number}" for number in _LINEAR[arch]]
    for arch, numbers in _CONVOLUTIONS.items()
}
SIDES = {"alexnet": 6, "vgg16": 7}
"""Side of the last map that their linear layers are made for."""

SOBEL = {
    "sobel.0.weight": torch.full((1, 3, 1, 1), 1 / 3),
    "sobel.0.bias": torch.zeros(1),
    "sobel.1.weight": EDGES[:, None],
    "sobel.1.bias": torch.zeros(2),
}


@dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
        backbone: in eval mode, on the CPU, for images of 224 px; its output is fc7 before the ReLU.
        head_weight: (K, 4096) of the classifier over clusters, which reads fc7 after its ReLU, or None.
        head_bias: (K,), or None.
        arch: "alexnet" or "vgg16".
        epoch: epochs that were trained; 0 where the file does not say.
        k: outputs of the classifier over clusters; 0 where there is none.
    """

    backbone: Backbone
    head_weight: Tensor | None
    head_bias: Tensor | None
    arch: str
    epoch: int
    k: int


def load_released(file: str | Path) -> Released:
    """Reads a checkpoint that DeepCluster's authors published, or one that `save_released` wrote.

    Nothing in the file is run. `.module`, which DataParallel leaves in names, may be there or not. Files of before
    torch 0.4.1 have no `num_batches_tracked`; nothing reads it.

    Raises:
        DeepClusterError: missing, damaged, wanting to run code, or not of this layout.
    """
    arch, epoch, theirs = _layout(Path(file))
    require_finite(theirs, file)
    sobel = "sobel.0.weight" in theirs
    for name, expected in SOBEL.items() if sobel else ():
        if not torch.allclose(_take(theirs, name, tuple(expected.shape), file).float(), expected, atol=1e-6):
            raise DeepClusterError(
                f"{name} of {file} is not the paper's fixed Sobel filter: backbones with other filters in front are not"
                " read."
            )
    weight = bias = None
    if "top_layer.weight" in theirs or "top_layer.bias" in theirs:
        k = theirs["top_layer.bias"].numel() if "top_layer.bias" in theirs else 0
        bias = _take(theirs, "top_layer.bias", (k,), file)
        weight = _take(theirs, "top_layer.weight", (k, DIM), file)
    with torch.device("meta"):  # no weights are drawn that would be replaced
        backbone = build_backbone(arch, sobel="paper" if sobel else "none", image_size=IMAGE_SIZE)
    backbone.sobel = input_layer(backbone.config["sobel"])[0]  # its filters are fixed, and not in the state dict
    shapes, weights = backbone.state_dict(), dict[str, Tensor]()
    for their_name, our_name in _names(backbone, arch).items():
        ours = shapes[our_name]
        if their_name.endswith("num_batches_tracked") and their_name not in theirs:
            weights[our_name] = torch.zeros((), dtype=ours.dtype)
            continue
        weights[our_name] = _take(theirs, their_name, tuple(ours.shape), file).to(ours.dtype).contiguous()
    if theirs:
        raise DeepClusterError(
            f"{file} holds {next(iter(theirs))}, which the {arch} of DeepCluster does not have: it was changed, or its"
            " arch is wrong."
        )
    backbone.load_state_dict(weights, assign=True)
    return Released(backbone.eval(), weight, bias, arch, epoch, 0 if bias is None else len(bias))


def save_released(
    backbone: Backbone,
    file: str | Path,
    head: tuple[Tensor, Tensor] | None = None,
    epoch: int = 0,
    k: int = 1000,
) -> Path:
    """Writes `backbone` so that the authors' evaluation scripts read it; `load_released` is the inverse.

    Args:
        backbone: alexnet or vgg16, with the paper's Sobel or without, for images of 224 px.
        head: weight (K, 4096) and bias (K,) of the classifier over clusters.
        epoch: epochs that were trained.
        k: without a `head`, the outputs of a `top_layer` of zeros, which their scripts cut off before they look at
            features.

    The optimizer's entry is empty: their evaluation does not read it, their training cannot go on from it. The file
    has torch's form of before version 1.6, which old versions read as new ones do.

    Raises:
        DeepClusterError: a backbone or head that their scripts have no place for, or a file that cannot be written.
    """
    arch = _fitting(backbone)
    weight, bias = (torch.zeros(k, DIM), torch.zeros(k)) if head is None else head
    if weight.ndim != 2 or weight.shape[1] != DIM or bias.shape != weight.shape[:1] or len(weight) < 1:
        raise DeepClusterError(
            f"The classifier over clusters must have a weight of shape (K, {DIM}) and a bias of shape (K,), K at least"
            f" 1, not {tuple(weight.shape)} and {tuple(bias.shape)}."
        )
    ours = backbone.state_dict()
    theirs = {} if backbone.config["sobel"] == "none" else dict(SOBEL)
    for their_name, our_name in _names(backbone, arch).items():
        # Their convolutions lie in DataParallel, which puts `.module` into the name; the linear layers do not.
        theirs[their_name.replace("features.", "features.module.", 1)] = ours[our_name]
    theirs |= {"top_layer.weight": weight, "top_layer.bias": bias}
    state = {
        "epoch": epoch,
        "arch": arch,
        "state_dict": {name: tensor.detach().cpu().contiguous().clone() for name, tensor in theirs.items()},
        "optimizer": {"state": {}, "param_groups": []},
    }
    return write_torch(Path(file), state, old_form=True)


def _names(backbone: Backbone, arch: str) -> dict[str, str]:
    """Every tensor's name with them -> with us."""
    return {
        f"{layer}.{part}": f"trunk.{layer}.{part}"
        for layer in LAYERS[arch]
        for part in backbone.get_submodule(f"trunk.{layer}").state_dict()
    }


def _layout(file: Path) -> tuple[str, int, dict[str, Tensor]]:
    """arch, epoch and the tensors by name, `.module` taken out."""
    state = read_torch(file)
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict) or "arch" not in state:
        raise DeepClusterError(
            f"{file} has not the layout of DeepCluster's checkpoints (a dict with arch and state_dict): give one of"
            " theirs, or a model.safetensors of ours."
        )
    arch, epoch = state["arch"], state.get("epoch", 0)
    if not isinstance(arch, str) or arch not in LAYERS:
        raise DeepClusterError(
            f"{file} holds a network called {arch!r}, but DeepCluster's checkpoints are of {' and '.join(LAYERS)}:"
            " give one of these."
        )
    tensors: dict[str, Tensor] = {}
    for key, value in state["state_dict"].items():
        if not isinstance(value, Tensor):
            raise DeepClusterError(f"{file} has no tensor at {key!r} of its state_dict: it is damaged; get it again.")
        tensors[".".join(part for part in str(key).split(".") if part != "module")] = value.detach()
    return arch, epoch if isinstance(epoch, int) else 0, tensors


def _take(theirs: dict[str, Tensor], name: str, shape: tuple[int, ...], file: str | Path) -> Tensor:
    """Takes the tensor of this name and shape out of `theirs`."""
    if name not in theirs:
        raise DeepClusterError(f"{file} has no {name} in its state_dict, so it is not whole: get it again.")
    tensor = theirs.pop(name)
    if tuple(tensor.shape) != shape:
        raise DeepClusterError(
            f"{name} of {file} has the shape {tuple(tensor.shape)} and should have {shape}: it is of another network"
            " than its arch says."
        )
    return tensor


def _fitting(backbone: Backbone) -> str:
    """The arch of a backbone that the authors' scripts can rebuild.

    Raises:
        DeepClusterError: they have no such network.
    """
    name, sobel, trunk = backbone.name, backbone.config["sobel"], backbone.trunk
    if name not in LAYERS or not isinstance(trunk, ConvThenLinear):
        wrong = f"its network is {name}, theirs are {' and '.join(LAYERS)}"
    elif sobel not in ("none", "paper"):
        wrong = f"its input layer is {sobel}, theirs are none and paper"
    elif trunk.side != SIDES[name]:
        wrong = f"it was made for images of {backbone.image_size} px, theirs for {IMAGE_SIZE} px"
    elif (backbone.mean, backbone.std) != (IMAGENET_MEAN, IMAGENET_STD):
        wrong = "its images are not normalized with ImageNet's mean and deviation, as theirs are"
    else:
        return name
    raise DeepClusterError(
        f"This backbone cannot be written for the scripts of DeepCluster's authors ({wrong}): export it as safetensors."
    )
