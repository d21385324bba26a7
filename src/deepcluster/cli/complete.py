"""What a shell offers for the Tab key: `complete -o default -C "deepcluster --complete" deepcluster`.

The shell calls this with the line that is typed in COMP_LINE. Options and their choices are those of the help page of
that line, so there is nothing to keep up to date; where nothing is offered, the shell offers files.
"""

from __future__ import annotations

import contextlib
import io
import os
import re

from deepcluster.cli.evaluate import PROTOCOLS
from deepcluster.cli.main import COMMANDS, main
from deepcluster.cli.visualize import PICTURES
from deepcluster.methods.params import METHODS
from deepcluster.presets import PRESETS

NAMES = {
    "train": tuple(PRESETS), "presets": tuple(PRESETS), "plan": tuple(PRESETS),
    "evaluate": tuple(PROTOCOLS), "visualize": tuple(PICTURES),
}  # fmt: skip
"""Names that stand in the place of a word: that behind the command, or behind the run."""


def offered(line: str) -> list[str]:
    """The words that the last word of the line can become.

    Args:
        line: what is typed up to the cursor, the program's name included.
    """
    *words, current = line.split(" ")
    words = [word for word in words[1:] if word]
    if not words:
        found = [*COMMANDS, "--help", "--version"]
    elif words[0] not in COMMANDS:
        found = []
    else:
        command, rest = words[0], words[1:]
        named = [word for word in rest if word in NAMES.get(command, ())]
        page = _help(command, named[:1], "--resume" in rest)
        behind = 1 if command in ("evaluate", "visualize") else 0  # the run is named first
        found = re.findall(r"--[a-z][\w.-]*", page) if current.startswith("-") else []
        if choices := re.search(rf"{re.escape(words[-1])} (?:\{{None\}}\|)?\{{([\w,\s-]+)\}}", page):
            found = re.split(r"[,\s]+", choices[1])
        elif words[-1] == "--method":
            found = [name for name, (kind, _) in METHODS.items() if kind().trains]
        elif len(rest) == behind and not current.startswith("-"):
            found = list(NAMES.get(command, ()))
    return sorted({word for word in found if word.startswith(current)})


def _help(command: str, named: list[str], resume: bool) -> str:
    """The help page of the command, of the preset, protocol or picture that is named."""
    words = ["x", *named] if named and command in ("evaluate", "visualize") else named
    if command == "train":  # without a preset the settings are chosen from the images; their names are the same
        words = ["--resume", "RUN"] if resume else words or ["tiny-deepcluster"]
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        if command == "train" and not (named or resume):
            main(["train", "--help"])
        main([command, *words, "--help"])
    return page.getvalue()


def complete() -> None:
    """Prints one offered word a line."""
    line = os.environ.get("COMP_LINE", "")
    end = os.environ.get("COMP_POINT", "")
    print("\n".join(offered(line[: int(end)] if end.isdigit() else line)))
