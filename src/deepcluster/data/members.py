"""What one shard holds: where its images lie in it, in the shard's own order.

This file knows neither tar nor zip, nor where shards are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The length that stands for "this long or longer": no picture is, and four bytes hold no more.
TOO_LONG = 2**32 - 1


@dataclass(frozen=True)
class Members:
    """The n images of one shard.

    Attributes:
        names: n member names.
        offsets: (n,) int64, the first byte of each: of a tar member's content, of a zip member's local header.
        lengths: (n,) int64, stored bytes of each, at most `TOO_LONG`.
        trouble: why the shard could not be read to its end; None when it could.
    """

    names: list[str]
    offsets: np.ndarray
    lengths: np.ndarray
    trouble: str | None = None

    @classmethod
    def of(cls, found: list[tuple[str, int, int]], trouble: str | None, size: int) -> Members:
        """From (name, offset, length) triples; those that reach past the shard's `size` in bytes are left out."""
        inside = [one for one in found if one[1] + one[2] <= size]
        if len(inside) < len(found) and trouble is None:
            trouble = "is cut short"
        return cls(
            [name for name, _, _ in inside],
            np.array([offset for _, offset, _ in inside], np.int64),
            np.minimum(np.array([length for _, _, length in inside], np.int64), TOO_LONG),
            trouble,
        )
