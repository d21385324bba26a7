"""The command line: runs a command, and reports a mistake as one sentence with exit status 2.

Imports nothing that a help page does not need.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from deepcluster.cli.common import refuse_several_processes, table_line
from deepcluster.distributed import is_secondary_process
from deepcluster.errors import (
    DeepClusterError,
    DeepClusterWarning,
    Interrupted,
    ProcessLost,
    did_you_mean,
    explained,
)

COMMANDS = {
    "cluster": "group images, or a feature table: cluster SOURCE --out RUN",
    "explore": "browse, rename, merge, split and export groups: explore RUN",
    "assign": "groups of new images: assign RUN --data S --out FILE.csv",
    "report": "one page with groups, curves and pictures: report RUN",
    "visualize": "pictures as PNG: visualize RUN|BACKBONE PICTURE",
    "export": "a run for other programs: export RUN --format onnx --out FILE.onnx",
    "train": "train on images, or resume: train [PRESET] --data S --out RUN",
    "presets": "the recipes, or one with all its settings: presets [NAME]",
    "doctor": "is a run healthy, and what to change: doctor RUN",
    "evaluate": "score a run or any backbone: evaluate RUN|BACKBONE PROTOCOL",
    "plan": "memory, disk and hours of a run: plan PRESET --images 1e8",
    "features": "features as a table: features RUN|BACKBONE --data S --out F.npy",
    "curate": "a balanced sample: curate FEATURES|S --size M --out FILE.txt",
    "index": "a manifest of many shards: index SHARDS... --out FILE.json",
}
"""Each command has a module in this package: with a function `command`, if its options depend on its first arguments,
or with a function of the command's name, whose parameters are its options."""

SHARED = ("train", "features", "cluster", "assign", "evaluate")
"""Commands whose work several processes can share."""

HELP = """\
deepcluster: visual features and image clusters from unlabeled images.

usage: deepcluster COMMAND ...

commands:
{commands}

`deepcluster COMMAND --help` explains a command;
`deepcluster train PRESET --help` lists every setting.
Images (--data) are a folder, tar or zip shards ("a/*.tar", t-{{000..003}}.zip,
also s3://...), a .json manifest of shards, parquet files, a .txt or .csv list,
a .npy array, hf:NAME (the Hugging Face hub), torchvision:CIFAR10?root=..., or
`digits`, which need no download.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    make_output_safe()
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(
            HELP.format(commands="\n".join(table_line(name, about, 11) for name, about in COMMANDS.items())),
            end="",
        )
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"deepcluster {version('deepcluster')}")
        return 0
    if arguments[0] == "--complete":
        from deepcluster.cli.complete import complete

        complete()
        return 0
    name, rest = arguments[0], arguments[1:]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own remarks on sockets and processors
    try:
        if name not in COMMANDS:
            raise DeepClusterError(f"There is no command {name!r}.{_meant(name)} `deepcluster --help` lists them.")
        if name not in SHARED:
            refuse_several_processes(f"`deepcluster {name}`")
        with warnings.catch_warnings():
            if not sys.warnoptions:  # those of libraries say nothing that their user can change
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", DeepClusterWarning)
            warnings.showwarning = _once(warnings.showwarning)
            _run(name, rest)
    except ProcessLost as error:
        return _mistake(str(error), everywhere=True)
    except DeepClusterError as error:
        return _mistake(str(error))
    except Interrupted as stopped:
        return 128 + int(stopped.args[0])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except UnicodeEncodeError as error:  # libraries that write files by names in UTF-8 only
        name = str(error.object)[:200].encode("utf-8", "backslashreplace").decode()
        return _mistake(f"The name {name} is not in UTF-8, which what writes there needs: choose another --out.")
    except (OSError, RuntimeError, MemoryError) as error:
        if sentence := explained(error):
            return _mistake(str(sentence), everywhere=isinstance(sentence, ProcessLost))
        if not isinstance(error, OSError):
            raise
        # A full disk or missing permission: the message of the file system, and the path.
        where = f" at {error.filename}" if error.filename else ""
        return _mistake(
            f"{error.strerror or error}{where}: no partial file was left; free some space or choose another path."
        )
    return 0


def _once(show: Callable[..., None]) -> Callable[..., None]:
    """Shows each warning once: what opens the same images twice finds the same in them. Python's own filter of this
    name forgets what was said whenever any library changes its filters."""
    said: set[str] = set()

    def shown(message: Warning | str, *where: Any, **more: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            show(message, *where, **more)

    return shown


def make_output_safe() -> None:
    """Lets both streams take any text, whatever the encoding of terminal or log, and shows warnings as sentences. What
    was started without them writes to nothing, and not to the next file that is opened."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def _run(name: str, arguments: list[str]) -> None:
    module = f"deepcluster.cli.{name}"
    command = getattr(import_module(module), "command", None)
    if command is not None:
        command(arguments)
        return
    from deepcluster.cli.options import Function, parse_options

    function = Function(f"{module}:{name}")
    function.call(parse_options([function], arguments, prog=f"deepcluster {name}"))


def _meant(name: str) -> str:
    """The command that may have been meant: one with a similar name, or a protocol of this name."""
    from deepcluster.cli.evaluate import PROTOCOLS

    if name in PROTOCOLS:
        return f" Did you mean `deepcluster evaluate RUN {name}`?"
    return did_you_mean(name, list(COMMANDS))


def _mistake(sentence: str, everywhere: bool = False) -> int:
    if everywhere or not is_secondary_process():  # of several processes one says it
        print(f"deepcluster: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
