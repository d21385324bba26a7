"""Where decoded pixels and tar indices are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder named by the environment variable DEEPCLUSTER_CACHE, else ~/.cache/deepcluster.

    All of it may be deleted at any time: what is missing is made again.
    """
    named = os.environ.get("DEEPCLUSTER_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcluster"
