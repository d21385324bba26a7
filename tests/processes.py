"""Runs one function in several processes that know each other, over the loopback network."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from deepcluster.distributed import ProcessGroup

LOADED = ["deepcluster.engine.train", "deepcluster.clustering", "pytest", "sklearn.cluster", "torch.utils.tensorboard"]


def together(work: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What `work(world, *arguments)` gives in each of `size` processes, by rank; one thread each.

    `work` must be a function of a test module; what it gives must be plain values, arrays or tensors. One process
    alone runs in place, without any torch.distributed.
    """
    if size == 1:
        return [_on_one_thread(work, ProcessGroup(), arguments)]
    # A server that has loaded everything once is copied for each process: loading it anew would take most of the time.
    multiprocessing.set_forkserver_preload(LOADED)
    with tempfile.TemporaryDirectory() as folder:
        torch_processes: Any = mp  # not annotated in torch
        torch_processes.start_processes(
            _process, (size, free_port(), work, arguments, folder), size, start_method="forkserver"
        )
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(size)]


def _process(rank: int, size: int, port: int, work: Callable[..., Any], arguments: Any, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        torch.save(_on_one_thread(work, ProcessGroup(rank, size), arguments), Path(folder) / str(rank))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _on_one_thread(work: Callable[..., Any], group: ProcessGroup, arguments: Any) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(group, *arguments)
    finally:
        torch.set_num_threads(threads)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
