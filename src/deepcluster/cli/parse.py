"""Parses arguments with tyro, and turns its boxed messages into one sentence."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import re
import shutil
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from deepcluster.errors import DeepClusterError

T = TypeVar("T")


def parse(what: Callable[..., T], arguments: list[str], *, prog: str, default: Any = None, about: str = "") -> T:
    """The arguments as an instance of `what`, a dataclass; DeepClusterError for an unknown option, or a missing or
    wrong value. A flag can be written as `--flag`, `--no-flag`, `--flag True` or `--flag False`; the help shows the one
    that changes the default."""
    message = io.StringIO()
    help_asked = "-h" in arguments or "--help" in arguments
    if help_asked and (about := about or what.__doc__ or ""):
        print(f"{_wrapped(about)}\n")  # tyro would leave its lines as they are
    try:
        with contextlib.redirect_stderr(message):
            chosen: T = tyro.cli(
                what,
                prog=prog,
                args=_flags(arguments),
                description="",
                # The default determines the method: only its options exist, and no other method can be chosen.
                config=(tyro.conf.AvoidSubcommands, *([tyro.conf.FlagCreatePairsOff] if help_asked else [])),
                **({} if default is None else {"default": default}),
            )
            return chosen
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        images = take(arguments, "data")[0]["data"]
        if images and prog in ("deepcluster cluster", "deepcluster curate"):  # other commands have --data
            rest = _example(prog).split(" ", 3)[3]
            raise DeepClusterError(f"The images are given without --data: {prog} {images} {rest}.") from None
        raise DeepClusterError(sentence(message.getvalue(), prog)) from None


def _wrapped(text: str) -> str:
    """Paragraphs, and lines such as "Source: ...", as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    parts = re.split(r"(\n\n|\n(?=[A-Z][a-z ]+: ))", inspect.cleandoc(text))
    words = (part if part.isspace() else " ".join(part.split()) for part in parts)
    return "".join(part if part.isspace() else textwrap.fill(part, width, break_on_hyphens=False) for part in words)


def take(arguments: list[str], *options: str) -> tuple[dict[str, str | None], list[str]]:
    """The values that the arguments give to some options, and the arguments without them.

    None stands for an option that is not there, "" for one whose value is missing.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(f"--{option}", nargs="?", const="")
    given, rest = parser.parse_known_args(arguments)
    return vars(given), rest


def sentence(box: str, prog: str) -> str:
    """The message in tyro's box as one sentence, with the similar option that tyro suggests."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colors, where stdout is a terminal
    # The first line is the title of the box. If the encoding of the terminal has no box characters, rules are dashes.
    inside = [line.strip("│ ") for line in box.splitlines()[1:] if not line.startswith("╰")]
    if inside and re.match(r"-{8}", inside[0]):
        inside = inside[1:]
    rules = [position for position, line in enumerate(inside) if re.match(r"[─-]{8}", line)] or [len(inside)]
    message = " ".join(inside[: rules[0]]).strip().rstrip(".")
    if needing := re.match(r"Missing value for argument '([\w.-]+)", message):
        message = f"{needing[1]} needs a value" if needing[1][0] == "-" else f"Something is missing: {_example(prog)}"
    elif wrong := re.match(r"Error parsing (--[\w.-]+): (?:invalid literal|could not convert).*: '(.*)'$", message):
        message = f"{wrong[1]} takes a number, not {wrong[2]!r}"
    elif wrong := re.match(r"Error parsing (--[\w.-]+): no type matching (.+) could be .*? from \['(.*?)'\]", message):
        kinds = re.findall(r"\w[\w-]*", wrong[2].replace("{None}", ""))
        words = [{"INT": "a whole number", "FLOAT": "a number"}.get(kind, kind) for kind in kinds]
        message = f"{wrong[1]} takes {_either(words)}, not {wrong[3]!r}"
    elif wrong := re.match(r"invalid choice ('.*') for argument '(--[\w.-]+)'. Expected one of \((.*)\)$", message):
        words = re.findall("'(.*?)'", wrong[3])
        message = f"{wrong[2]} takes {_either(words)}, not {wrong[1]}"
    elif message.startswith("Unrecognized options: "):
        message = _unknown(message.partition(": ")[2].split(", "))
    elif message.startswith("Missing"):
        missing = [
            {"PATH": "the path", "STR": "the name"}.get(word, word)
            for word in re.findall(r"^[│ ]? {4,5}(--\w[\w.-]*|[A-Z]{2,})", box.partition("Unrecognized")[0], re.M)
            if word != "--help"
        ]
        message = f"{' and '.join(dict.fromkeys(missing)) or 'Something'} must be given"
        if "the path" in missing or "the name" in missing:  # which one, the command's example says
            message = f"Something is missing: {_example(prog)}"
        if unknown := re.findall(r"^(--\w[\w.-]*)", "\n".join(inside).partition("Unrecognized")[2], re.M):
            message += f", and there is no option {' and no option '.join(unknown)}"
    meant = re.search(r"Perhaps you meant.*?(--[\w.-]+)", " ".join(inside[rules[0] :]))
    hint = f" Did you mean {meant[1]}?" if meant else ""
    return f"{message}.{hint} `{prog} --help` lists the options."


def _example(prog: str) -> str:
    from deepcluster.cli.main import COMMANDS

    return f"deepcluster {COMMANDS[prog.split()[1]].rpartition(': ')[2]}"


def _either(words: list[str]) -> str:
    """What can be given, in words: kmeans, pic or temi."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _flags(arguments: list[str]) -> list[str]:
    """`--flag True` as `--flag`, and `--flag False` as `--no-flag`."""
    found: list[str] = []
    for word in arguments:
        if word in ("True", "False") and found and found[-1].startswith("--"):
            group, dot, name = found.pop()[2:].rpartition(".")
            word = f"--{group}{dot}{'' if word == 'True' else 'no-'}{name}"
        found.append(word)
    return found


def _unknown(words: list[str]) -> str:
    """Names the options that do not exist, without the values after them."""
    options = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    if not options:
        return f"Unexpected argument: {' '.join(words)}"
    return f"There is no option {' and no option '.join(dict.fromkeys(options))}"
