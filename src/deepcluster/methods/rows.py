"""Tables with a row for each image, such as memories, of which each process keeps the rows of its images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.distributed import ProcessGroup


class ImageRows(nn.Module):
    """A module with such tables as buffers, so that a checkpoint holds all of them, for any number of processes.

    Attributes:
        n: images.
        group: the processes that divide the rows among them.
        batch_group: those that divide the batches.
        assignment: (N,) int64 clusters, -1 of images that cannot be decoded, and of all before the first clustering.
        row_buffers: names of the tables.
    """

    n: int
    group: ProcessGroup
    batch_group: ProcessGroup
    assignment: Tensor
    row_buffers: tuple[str, ...] = ()

    @property
    def local_range(self) -> tuple[int, int]:
        """The first image whose rows this process keeps, and the one after the last."""
        return self.group.row_range(self.n)

    def keep_rows(self, name: str, *shape: int) -> None:
        """Creates the buffer `name` with a row of this shape, zeros, for each image of `local_range`."""
        self.register_buffer(name, torch.zeros(self.local_range[1] - self.local_range[0], *shape))
        self.row_buffers += (name,)

    @property
    def kept_images(self) -> Tensor:
        """(M,) int64 images of `local_range` that have a cluster: all that can be decoded, from the first on."""
        first, last = self.local_range
        return (self.assignment[first:last] >= 0).nonzero().flatten() + first

    def store_rows_(self, table: Tensor, index: Tensor, rows: Tensor) -> None:
        """Writes `rows` (B, ...) of images `index` (B,) into `table`, one of `row_buffers`, as far as they are kept
        here."""
        first, last = self.local_range
        here = ((index >= first) & (index < last)).nonzero().flatten()
        own = rows[here.to(rows.device, non_blocking=True)]
        table[(index[here] - first).to(table.device, non_blocking=True)] = own

    def store_all_rows_(self, table: Tensor, index: Tensor, rows: Tensor) -> None:
        """Likewise `rows` (M, ...) of images `index` (M,), of which each process has some."""
        for positions, part in self.group.gather_in_blocks(index.to(table.device), rows.to(table.device)):
            self.store_rows_(table, positions, part)

    def store_batch_(self, table: Tensor, index: Tensor, rows: Tensor) -> None:
        """Likewise this process's `rows` (B, ...) of a batch's images `index` (B,); of an image that occurs twice the
        last."""
        # The index stays on the CPU, so that nothing waits for a GPU.
        index, rows = self.batch_group.gather(index), self.batch_group.gather(rows)
        for each in occurrences(index):
            self.store_rows_(table, index[each], rows[each.to(rows.device, non_blocking=True)])

    def gathered_rows(self) -> dict[str, Tensor]:
        """The tables of all processes, on the first one; empty on the others, and where there is one process."""
        if self.group.is_single:
            return {}
        own = torch.arange(*self.local_range)
        tables = {name: self.group.gather_to_first(own, getattr(self, name), self.n) for name in self.row_buffers}
        return {name: table for name, table in tables.items() if table is not None}

    def take_own_rows_on_load(self) -> None:
        """Loading a state dict takes of the tables of all images in it the rows that are kept here."""
        self.register_load_state_dict_pre_hook(_take_own_rows)  # type: ignore[no-untyped-call]


def _take_own_rows(method: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    assert isinstance(method, ImageRows)
    for name in method.row_buffers:
        rows = state.get(prefix + name)
        if not method.group.is_single and isinstance(rows, Tensor) and len(rows) == method.n:
            state[prefix + name] = rows[slice(*method.local_range)]


def occurrences(index: Tensor) -> list[Tensor]:
    """Positions of each image's first occurrence in `index` (B,), of its second, and so on: one after the other they
    do what going through the batch image by image would."""
    count: dict[int, int] = {}
    rounds: list[list[int]] = []
    for position, image in enumerate(index.tolist()):
        earlier = count.get(image, 0)
        count[image] = earlier + 1
        if earlier == len(rounds):
            rounds.append([])
        rounds[earlier].append(position)
    return [torch.tensor(positions) for positions in rounds]
