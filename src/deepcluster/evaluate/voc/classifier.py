"""The trained classifier of a VOC evaluation: read back, and used on any images.

An SVM's file holds its weights and needs the backbone it was trained on; a fine-tuned network's file holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.data.loader import Loader
from deepcluster.data.open import open_images
from deepcluster.data.transforms import RandomViews
from deepcluster.data.views import ViewGroup
from deepcluster.engine.subject import CACHE_GB, Subject, pick_device
from deepcluster.errors import DeepClusterError
from deepcluster.evaluate.linear.pooling import OUTPUT, Pooling
from deepcluster.evaluate.voc.crops import summed_logits
from deepcluster.evaluate.voc.transfer import KIND, Transfer, build_transfer
from deepcluster.io import write_atomic
from deepcluster.models.backbone import Backbone
from deepcluster.models.taps import read_taps

if TYPE_CHECKING:
    from deepcluster.evaluate.voc.svm import Machine

BATCH = 128
EPSILON = 1e-5  # of the L2 normalization, as in OpenSelfSup's benchmark


def describe(
    backbone: Backbone,
    pixels: Pixels,
    poolings: dict[str, Pooling],
    device: str,
    check: Callable[[int], None] = lambda images: None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of whole images, resized to squares: of each tap pooled and L2-normalized.

    Returns:
        (M,) int64 ascending, the images that can be decoded, and for each tap (M, D) float32.
    """
    size = backbone.image_size
    whole = ViewGroup(size=size, crop_scale=None, flip=0.0, mean=backbone.mean, std=backbone.std)
    loader = Loader(pixels, np.arange(len(pixels)), batch_size=BATCH, transform=RandomViews(whole), device=device)
    taps = [tap for tap in poolings if tap != OUTPUT]
    index: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {tap: [] for tap in poolings}
    backbone.to(device).eval()
    with torch.inference_mode(), read_taps(backbone, taps) as seen:
        for batch in loader:
            output = backbone(batch.views[0])
            for tap, pooling in poolings.items():
                vectors = pooling(output if tap == OUTPUT else seen[tap])
                vectors = vectors / (vectors.norm(dim=1, keepdim=True) + EPSILON)
                parts[tap].append(vectors.cpu().numpy())
            index.append(batch.index.numpy())
            check(len(batch.index))
    return np.concatenate(index), {tap: np.concatenate(rows) for tap, rows in parts.items()}


def save_machines(file: Path, machines: dict[str, list[Machine | None]], about: dict[str, Any]) -> Path:
    """Writes SVMs: for each tap TAP.weight (C, D) and TAP.bias (C,); `about` says what else is needed to use them."""
    from safetensors.torch import save_file

    tensors = {}
    for tap, row in machines.items():
        dim = next(len(machine.weight) for machine in row if machine is not None)
        weight = [np.zeros(dim) if machine is None else machine.weight for machine in row]
        bias = [0.0 if machine is None else machine.bias for machine in row]
        tensors[f"{tap}.weight"] = torch.from_numpy(np.stack(weight)).float()
        tensors[f"{tap}.bias"] = torch.tensor(bias)
    return write_atomic(file, lambda beside: save_file(tensors, beside, {"format": "pt", KIND: json.dumps(about)}))


class VOCClassifier:
    """What an evaluation trained, to score any images with.

    Attributes:
        classes: C names.
        about: what its file says of it.
    """

    def __init__(self, about: dict[str, Any], device: str, network: Transfer | None, subject: Subject | None) -> None:
        self.about = about
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.device = device
        self._network, self._subject = network, subject
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def scores(self, data: Any, tap: str | None = None) -> np.ndarray:
        """(N, C) scores of any images, larger = surer; NaN rows for images that cannot be decoded.

        Args:
            data: what `open_images` takes.
            tap: for SVMs of several layers, which; None = the deepest.
        """
        if self._network is not None:
            views = ViewGroup(**{name: _tuple(value) for name, value in self.about["views"].items()})
            pixels = load_pixels(open_images(data), short_side=self.about["short_side"], cache_gb=CACHE_GB)
            return summed_logits(
                self._network, pixels, views, len(self.classes), kind=self.about["crops"], device=self.device
            )
        assert self._subject is not None
        tap = tap or list(self._weights)[-1]
        if tap not in self._weights:
            raise DeepClusterError(f"There are no SVMs of {tap!r}, only of {', '.join(self._weights)}.")
        source = open_images(data)
        pixels = load_pixels(source, short_side=self.about["short_side"], cache_gb=self._subject.cache_gb)
        poolings = {tap: Pooling(**self.about["poolings"][tap])}
        index, features = describe(self._subject.backbone, pixels, poolings, self.device)
        weight, bias = self._weights[tap]
        table = np.full((len(source), len(self.classes)), np.nan)
        table[index] = features[tap] @ weight.T + bias
        return table


def load_voc_classifier(file: str | Path, subject: Subject | None = None, device: str = "auto") -> VOCClassifier:
    """Reads the `voc-classification.safetensors` that an evaluation wrote.

    Args:
        subject: for SVMs, the network they were trained on (`engine.runs.load_subject`); a fine-tuned network
            needs none.

    Raises:
        DeepClusterError: the file is something else or damaged, or the SVMs' network is missing.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            about = json.loads((handle.metadata() or {})[KIND])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DeepClusterError(f"{file} holds no classifier of {KIND} ({error}): give the file of one.") from error
    device = pick_device(device)
    if about["mode"] != "svm":
        network = build_transfer(about)
        network.load_state_dict(tensors)
        return VOCClassifier(about, device, network.to(device).eval(), None)
    if subject is None:
        raise DeepClusterError(f"{file} holds SVMs on features of {about['subject']}: give that network as subject.")
    found = VOCClassifier(about, subject.device, None, subject)
    for tap in about["poolings"]:
        found._weights[tap] = (tensors[f"{tap}.weight"].numpy(), tensors[f"{tap}.bias"].numpy())
    return found


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
