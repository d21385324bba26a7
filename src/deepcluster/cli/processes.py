"""Commands that torchrun starts in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from deepcluster.distributed import SINGLE, ProcessGroup, current


@contextmanager
def several_processes() -> Iterator[ProcessGroup]:
    """The processes that torchrun has started, in touch with each other for as long as it lasts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield SINGLE
        return
    import torch.distributed as dist

    if dist.is_initialized():  # whoever has begun it ends it
        yield current()
        return
    dist.init_process_group("gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()
