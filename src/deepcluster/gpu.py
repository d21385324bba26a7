"""What a GPU offers: room for tables, and kernels by Triton where they compile and do right by a small example."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from deepcluster.errors import warn

if TYPE_CHECKING:
    import torch


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody uses; 0 of what is none."""
    if device.type != "cuda":
        return 0
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later
    return torch.cuda.mem_get_info(device)[0] + kept


def has_triton(device: torch.device) -> bool:
    """Whether kernels could run there; not every torch comes with Triton, which takes a second to load."""
    return device.type == "cuda" and find_spec("triton") is not None


def kernel_works(what: str, device: torch.device, is_right: Callable[[], bool]) -> bool:
    """Whether `is_right`, which runs a kernel on `device`, says so; where it fails or does not, a warning tells why."""
    try:
        why = "" if is_right() else "what it computes is wrong"
    except Exception as error:  # such as no C compiler, or a GPU that Triton does not know
        why = (str(error).strip() or repr(error)).splitlines()[0]
    if why:
        warn(f"{what} on {device} goes on without Triton, whose kernel fails there: {why}")
    return not why
