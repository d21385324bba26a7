"""Arguments to values by tyro, with its boxed messages boiled down to one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from deepcluster.errors import DeepClusterError

T = TypeVar("T")


def parse(what: Callable[..., T], arguments: list[str], *, prog: str, default: Any = None, about: str = "") -> T:
    """The arguments as an instance of `what`, a dataclass.

    Raises:
        DeepClusterError: an unknown option, a missing or a wrong value.
    """
    said = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            chosen: T = tyro.cli(
                what,
                prog=prog,
                args=arguments,
                description=about or None,
                # a preset settles the method: its options alone, no choice of another
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
                **extra,
            )
            return chosen
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise DeepClusterError(sentence(said.getvalue(), prog)) from None


def sentence(box: str, prog: str) -> str:
    """The message in tyro's box, in one sentence, with the nearest option it knows."""
    # The first line is the box's title. Where the terminal's encoding has no box, rules are dashes.
    inside = [line.strip("│ ") for line in box.splitlines()[1:] if not line.startswith("╰")]
    if inside and re.match(r"-{8}", inside[0]):
        inside = inside[1:]
    rules = [position for position, line in enumerate(inside) if re.match(r"[─-]{8}", line)] or [len(inside)]
    message = " ".join(inside[: rules[0]]).strip().rstrip(".")
    if needing := re.match(r"Missing value for argument '(--[\w.-]+)'", message):
        message = f"{needing[1]} needs a value"
    elif message.startswith("Unrecognized options: "):
        message = _unknown(message.partition(": ")[2].split(", "))
    elif message.startswith("Missing"):
        missing = [
            {"PATH": "the path", "STR": "the name"}.get(word, word)
            for word in re.findall(r"^[│ ]+(--[\w.-]+|[A-Z]{2,})", box, re.M)
            if word != "--help"
        ]
        message = f"{' and '.join(dict.fromkeys(missing)) or 'Something'} must be given"
    meant = re.search(r"Perhaps you meant.*?(--[\w.-]+)", " ".join(inside[rules[0] :]))
    hint = f" Did you mean {meant[1]}?" if meant else ""
    return f"{message}.{hint} `{prog} --help` lists the options."


def _unknown(words: list[str]) -> str:
    """Options that do not exist, without the values that stand after them."""
    options = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    if not options:
        return f"There is no place for {' '.join(words)}"
    return f"There is no option {' and no option '.join(dict.fromkeys(options))}"
