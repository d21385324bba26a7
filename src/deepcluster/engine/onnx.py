"""A model as one ONNX graph: from pixels to features, cluster and the distance to its center."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deepcluster.clustering.whitening import Whitening
from deepcluster.data.augment import resized_side
from deepcluster.engine.model import Model
from deepcluster.errors import DeepClusterError, first_line
from deepcluster.features.block_reader import normalize_rows
from deepcluster.io import write_bytes
from deepcluster.models.folding import folded
from deepcluster.models.heads import ProjectionHead

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference to torch, where the largest feature is 1."""


class Graph(nn.Module):
    """(N, 3, S, S) uint8 RGB -> features (N, D) and, of a model with clusters, cluster (N,) int64 and distance (N,), as
    `Model.nearest` gives them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone = folded(model.backbone).float().cpu()
        self.steps = [
            copy.deepcopy(step).eval().requires_grad_(False) if isinstance(step, nn.Module) else step
            for step in model.embedding
        ]
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (self.backbone.mean, self.backbone.std))
        self.outputs = ["features", "cluster", "distance"][: 3 if len(model.centroids) else 1]
        # about their mean, products of rows that lie far from zero lose nothing
        self.origin = model.centroids.double().mean(0).float()
        self.centroids = model.centroids - self.origin
        self.upper = None if model.tree is None else model.tree.upper - self.origin
        self.used = None if model.tree is None else model.tree.used.bool()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features: Tensor = self.backbone((images.float() / 255 - self.mean) / self.std)
        if len(self.outputs) == 1:
            return (features,)
        z = features
        for step in self.steps:
            if isinstance(step, Whitening):
                z = (z - step.mean_.float()) @ step.components_.T
                z = normalize_rows(z) if step.l2 else z
            else:
                assert isinstance(step, ProjectionHead)
                z = step.directions(z)
        z = z - self.origin
        scores = _scores(z, self.centroids)
        if self.upper is not None and self.used is not None:  # down the tree: the nearest above, then within it
            below = self.used.view(len(self.upper), -1)
            above = _scores(z, self.upper).masked_fill(~below.any(1), -torch.inf).argmax(1)
            own = torch.arange(len(self.upper)).repeat_interleave(below.shape[1])
            scores = scores.masked_fill((own != above[:, None]) | ~self.used, -torch.inf)
        cluster = scores.argmax(1)
        return features, cluster, (z - self.centroids[cluster]).square().sum(1).sqrt()


def _scores(z: Tensor, centroids: Tensor) -> Tensor:
    """(N, K), largest at the nearest."""
    return z @ centroids.T - centroids.square().sum(1) / 2


class _Products(TorchFunctionMode):
    """Antialiased resizing, and pooling to sides that do not divide, as products with two matrices: ONNX of torch has
    neither. A first pass makes the matrices, which are constants when the network is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.interpolate and kwargs.get("antialias") and kwargs.get("size") is not None:
            wanted, options = kwargs["size"], {key: value for key, value in kwargs.items() if key != "size"}
        elif function is F.adaptive_avg_pool2d:
            wanted, options = args[1], {}
        else:
            return function(*args, **kwargs)
        images, sides = args[0], [int(side) for side in args[0].shape[-2:]]
        pair = (wanted, wanted) if isinstance(wanted, int) else wanted
        new = [side if out is None else int(out) for side, out in zip(sides, pair, strict=True)]
        if not options and not any(side % out for side, out in zip(sides, new, strict=True)):
            return function(*args, **kwargs)
        rows, columns = (self._matrix(function, side, out, options) for side, out in zip(sides, new, strict=True))
        return rows @ images @ columns.T

    def _matrix(self, function: Any, side: int, out: int, options: dict[str, Any]) -> Tensor:
        """(out, side), what the function does along one direction."""
        key = (function, side, out)
        if key not in self.made:
            self.made[key] = function(torch.eye(side)[None, None], (out, side), **options)[0, 0]
        return self.made[key]


@torch.no_grad()
def export_onnx(model: Model, file: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes the graph of `model`, for any number of images at once, after onnxruntime has given torch's numbers by it.

    Args:
        file: where to; its folder is made.
        metadata: entries for the file's own.

    Raises:
        DeepClusterError: onnx and onnxruntime are not installed, or the network cannot be written so.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise DeepClusterError(
            f"ONNX needs a package that is not installed ({error.name}): pip install 'deepcluster[onnx]'."
        ) from error
    graph, written, size = Graph(model).eval(), io.BytesIO(), model.backbone.image_size
    drawn = torch.randint(0, 256, (5, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), _Products():
            warnings.simplefilter("ignore")  # what a trace might miss is found below
            expected = graph(drawn)
            torch.onnx.export(
                graph,
                (drawn[:2],),
                written,  # type: ignore[arg-type]  # files that are open will do too
                input_names=["images"],
                output_names=graph.outputs,
                dynamic_axes={name: {0: "N"} for name in ["images", *graph.outputs]},
                opset_version=OPSET,
                dynamo=False,  # the other way takes minutes, and fixes the number of images of some networks
            )
        made = onnx.load_from_string(written.getvalue())
        made.graph.input[0].doc_string = describe_input(size)
        onnx.helper.set_model_props(made, {key: str(value) for key, value in (metadata or {}).items()})
        onnx.checker.check_model(made)
        content = made.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": drawn.numpy()})
        scale = float(expected[0].abs().max()) or 1.0
        apart = float(np.abs(found[0] - expected[0].numpy()).max()) / scale
        if not apart <= TOLERANCE:
            raise ValueError(f"onnxruntime gives features that differ by {apart:.1g} of the largest")
    except Exception as error:  # networks are written wrongly, or not at all, in as many ways as there are layers
        raise DeepClusterError(
            f"{model.backbone.name} cannot be written as ONNX ({first_line(error)}): export it as safetensors."
        ) from error
    return write_bytes(Path(file), content)


def describe_input(size: int) -> str:
    """What images must be before the graph sees them."""
    return (
        f"uint8 (N, 3, {size}, {size}), RGB, 0 to 255: the shorter side resized to {resized_side(size)} px (antialiased"
        f" bilinear), and of that the middle {size} x {size}"
    )
