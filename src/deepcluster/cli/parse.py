"""Arguments to values by tyro, with its boxed messages boiled down to one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from deepcluster.records import DeepClusterError

T = TypeVar("T")


def parse(
    what: Callable[..., T], arguments: list[str], *, prog: str, default: Any = None, about: str = ""
) -> T:
    """The arguments as an instance of `what`, a dataclass.

    Raises:
        DeepClusterError: an unknown option, a missing or a wrong value.
    """
    said = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                what,
                prog=prog,
                args=arguments,
                description=about or None,
                config=(tyro.conf.FlagCreatePairsOff,),
                **extra,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise DeepClusterError(sentence(said.getvalue(), prog)) from None


def sentence(box: str, prog: str) -> str:
    """The message in tyro's box, in one sentence, with the nearest option it knows."""
    lines = [line.strip("│ ").strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [position for position, line in enumerate(lines) if line.startswith("──")] or [len(lines)]
    message = " ".join(lines[: rules[0]]).strip().rstrip(".")
    meant = re.search(r"Perhaps you meant.*?(--[\w.-]+)", " ".join(lines[rules[0] :]))
    hint = f" Did you mean {meant[1]}?" if meant else ""
    return f"{message}.{hint} `{prog} --help` lists the options."
