"""What this machine computes on."""

from __future__ import annotations

import torch

from deepcluster.errors import DeepClusterError


def fast_bfloat16(kind: str) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is slower than 32 bits."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)


def pick_device(name: str) -> str:
    """ "auto" becomes the first GPU, or the CPU; DeepClusterError for a device that this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise DeepClusterError(f"There is no device {name!r} on this machine: use --device auto or cpu.")
    return name
