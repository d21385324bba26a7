"""One digest for weights, images and settings: equal content gives an equal text, on every machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np


def digest(*values: Any) -> str:
    """32 hex digits that depend on all of `values`: networks (by their names, parameters and buffers), tensors, arrays,
    bytes, dataclasses, and whatever JSON can hold, nested at will; anything else counts by its `str`, such as a path.
    """
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        _add(found, value)
    return found.hexdigest()


def short_digest(content: bytes) -> int:
    """64 bits of the same digest of bytes, never 0; at about 1 GB/s."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _add(found: hashlib.blake2b, value: Any) -> None:
    # Networks and tensors are told by their methods, so that this file needs no torch.
    if hasattr(value, "state_dict"):
        for name, entry in sorted(value.state_dict().items()):
            found.update(f"{name} ".encode())
            _add(found, entry)
    elif hasattr(value, "detach"):
        plain = value.detach().cpu().contiguous()
        found.update(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
        if plain.numel():
            import torch

            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype.str} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        found.update(value)
    else:
        found.update(json.dumps(value, sort_keys=True, default=_plain).encode())


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "state_dict") or hasattr(value, "detach") or isinstance(value, (np.ndarray, bytes)):
        return digest(value)
    return str(value)
