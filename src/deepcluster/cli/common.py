"""What several commands share: processes started by torchrun, checks of file names, and the result as text or JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.distributed import SINGLE, ProcessGroup, current
from deepcluster.errors import DeepClusterError

if TYPE_CHECKING:
    from deepcluster.engine.log import Screen


@contextmanager
def several_processes() -> Iterator[ProcessGroup]:
    """The process group of torchrun's processes, for as long as the context lasts; without torchrun one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield SINGLE
        return
    import torch.distributed as dist

    if dist.is_initialized():  # whoever initialized it also destroys it
        yield current()
        return
    dist.init_process_group("gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def check_table_name(out: Path) -> None:
    """Refuses a name that an assignment cannot be saved under.

    Raises:
        DeepClusterError: the name ends neither in .csv nor in .parquet.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise DeepClusterError(f"Assignments are written as .csv or .parquet, not as {out.name!r}: change --out.")


def show(screen: Screen, as_json: bool, values: Mapping[str, Any], sentence: str) -> None:
    """Prints the result of a command: one JSON object, or one sentence."""
    if as_json:
        print(dumps(values))
    else:
        screen.say(sentence)
