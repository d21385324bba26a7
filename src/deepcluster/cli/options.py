"""Command-line options read from a function's signature and docstring.

The function's module is parsed, not imported: protocols and pictures import torch, and `--help` has to answer at once.
It is imported when the function is called.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Optional, Union, get_args, get_origin

from tyro.conf import Positional, arg

from deepcluster.cli.parse import parse

ROOT = Path(__file__).parents[2]
SHARED_HELP = {
    "device": "Where to compute: auto, cpu, cuda or mps.",
    "engine": "Feature tables: ray = by Ray (the extra [ray]), on all cores here or on the cluster at RAY_ADDRESS.",
    "json": "Print one JSON object to standard output.",
    "seed": "Seed of all random draws; repetitions use the numbers that follow it.",
}
"""Help of options that mean the same everywhere; a docstring may leave these parameters out."""


class Function:
    """A function whose parameters are options of the command line, but for those in `injected`, which the caller of
    `call` supplies, and those with a `Callable` annotation. Positional-only ones (before `/`) are positional arguments.

    Args:
        target: "module:function", a function at the top level of a module of this package.
    """

    def __init__(self, target: str, injected: Collection[str] = ()) -> None:
        self.module, _, self.name = target.partition(":")
        self.injected = injected

    @cached_property
    def _definition(self) -> ast.FunctionDef:
        for node in _syntax_tree(self.module).body:
            if isinstance(node, ast.FunctionDef) and node.name == self.name:
                return node
        raise LookupError(f"There is no function {self.name} in {self.module}.")

    @cached_property
    def description(self) -> str:
        """The docstring up to `Args:` or another section."""
        text = inspect.cleandoc(ast.get_docstring(self._definition) or "")
        return re.split(r"\n+(?:Args|Returns|Yields|Raises):\n", text)[0].strip()

    @cached_property
    def summary(self) -> str:
        """The first sentence of the description, without its period."""
        return re.split(r"\.\s", " ".join(self.description.split()) + " ")[0]

    @cached_property
    def parameters(self) -> dict[str, ast.expr | None]:
        """The default of every parameter, as an expression; None = required."""
        arguments = self._definition.args
        names = [item.arg for item in arguments.posonlyargs + arguments.args]
        defaults = dict(zip(reversed(names), reversed(arguments.defaults), strict=False))
        keywords = zip((item.arg for item in arguments.kwonlyargs), arguments.kw_defaults, strict=True)
        return {name: defaults.get(name) for name in names} | dict(keywords)

    @cached_property
    def options(self) -> dict[str, tuple[Any, Any]]:
        """The annotation of every option, with its help, and its default as a dataclass field."""
        arguments, names = self._definition.args, _Names(self.module)
        positional, texts = {item.arg for item in arguments.posonlyargs}, self._texts()
        found = {}
        for item in arguments.posonlyargs + arguments.args + arguments.kwonlyargs:
            written = item.annotation or ast.Name("Any")
            if item.arg in self.injected or ast.unparse(written).startswith("Callable"):
                continue
            default = self.parameters[item.arg]
            value = dataclasses.MISSING if default is None else _evaluate(default, names)
            kind = _without_paths(_evaluate(written, names))
            if value is None:
                kind = Optional[kind]  # noqa: UP045
            kind = Annotated[kind, arg(name=option_name(item.arg), help=_capitalized(texts[item.arg], kind))]
            field = dataclasses.field(default=value, kw_only=item.arg not in positional)
            kind = Positional[kind] if item.arg in positional else kind  # type: ignore[misc, valid-type]
            found[item.arg] = (kind, field)
        return found

    def call(self, values: Mapping[str, Any], **injected: Any) -> Any:
        """Imports the function and calls it with those of the values and of `injected` that are parameters of it."""
        given = {name: values[name] for name in self.options}
        given |= {name: value for name, value in injected.items() if name in self.parameters}
        positional = [given.pop(item.arg) for item in self._definition.args.posonlyargs]
        return getattr(import_module(self.module), self.name)(*positional, **given)

    def _texts(self) -> dict[str, str]:
        """The help of each parameter, from `Args:`; for "see `package.module.function`." that of the other function."""
        docstring = inspect.cleandoc(ast.get_docstring(self._definition) or "")
        section = re.search(r"^Args:\n((?: .*\n|\n)*)", docstring + "\n", re.MULTILINE)
        texts = dict.fromkeys(self.parameters, "") | SHARED_HELP
        entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5}.*)*)", section[1] if section else "", re.MULTILINE)
        for names, text in entries:
            text = " ".join(text.split())
            elsewhere = re.fullmatch(r"see `([\w.]+)\.(\w+)`\.", text)
            if elsewhere:
                others = Function(f"deepcluster.{elsewhere[1]}:{elsewhere[2]}")._texts()
                texts |= {name: others[name] for name in names.split(", ")}
            else:
                texts |= dict.fromkeys(names.split(", "), re.sub(r"`(\w+)`", self._as_option, text))
        return texts

    def _as_option(self, word: re.Match[str]) -> str:
        known = word[1] in self.parameters and word[1] not in self.injected
        return f"--{option_name(word[1])}" if known else word[0]


def option_name(parameter: str) -> str:
    """What a parameter is called on the command line: `from_` is --from, `optimizer__lr` is --optimizer.lr."""
    return parameter.rstrip("_").replace("__", ".").replace("_", "-")


def parse_options(
    functions: Sequence[Function], arguments: list[str], *, prog: str, settings: Any = None, about: str = ""
) -> dict[str, Any]:
    """The values of the options of several functions together.

    Args:
        functions: where two have the same option, the first one describes it.
        arguments: the command line after the command's name.
        prog: the command, for messages.
        settings: a dataclass instance whose fields become options too, with its values as defaults; "settings" in the
            result is the instance with the values given.
        about: the description in the help; "" = that of the first function.

    Raises:
        DeepClusterError: an unknown option, or a missing or wrong value.
    """
    options: dict[str, tuple[Any, Any]] = {}
    for function in functions:
        options = function.options | options
    if settings is not None:
        options["settings"] = (
            Annotated[type(settings), arg(name="")],
            dataclasses.field(default_factory=lambda: settings),
        )
    order = dict.fromkeys(name for function in functions for name in function.options) | dict.fromkeys(options)
    kind = dataclasses.make_dataclass("Options", [(name, *options[name]) for name in order])
    chosen = parse(kind, arguments, prog=prog, about=about or functions[0].description)
    return {name: getattr(chosen, name) for name in order}


def _syntax_tree(module: str) -> ast.Module:
    """The parsed source of a module of this package."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


class _Tuple:
    """What `Sequence[X]` means on the command line: any number of values, as a tuple."""

    def __class_getitem__(cls, item: Any) -> Any:
        return tuple[item, ...]


class _Names(dict[str, Any]):
    """The names a module binds at its top level, evaluated when they are used; modules of this package are parsed."""

    def __init__(self, module: str) -> None:
        super().__init__(Sequence=_Tuple, Any=str, object=str)
        self.tree = _syntax_tree(module)

    def __missing__(self, name: str) -> Any:
        for node in ast.walk(self.tree):
            match node:
                case ast.Import(names=[ast.alias(name=module, asname=None)]) if module == name:
                    return import_module(module)
                case ast.ImportFrom(module=str(module), names=aliases):
                    for alias in aliases:
                        if name == (alias.asname or alias.name):
                            inside = module.startswith("deepcluster.")
                            self[name] = (_Names(module) if inside else vars(import_module(module)))[alias.name]
                            return self[name]
                case ast.Assign(targets=[ast.Name(id=bound)]) | ast.AnnAssign(target=ast.Name(id=bound)):
                    if name == bound and node.value is not None:
                        self[name] = _evaluate(node.value, self)
                        return self[name]
        raise KeyError(name)


def _capitalized(text: str, kind: Any) -> str:
    """The text with its first letter in upper case, unless it begins with a choice, a value or a file name."""
    first = re.match(r"([a-z]+(?:-[a-z]+)*)(?![\w:-]| =|\S*[_.]\w)", text)
    return text if first is None or f"'{first[1]}'" in repr(kind) else text[0].upper() + text[1:]


def _without_paths(kind: Any) -> Any:
    """`str | os.PathLike[str]`, which is a string on the command line, as `str`."""
    members = [member for member in get_args(kind) if get_origin(member) is not PathLike and member is not Path]
    is_union = get_origin(kind) in (Union, UnionType)
    return Union[tuple(members)] if is_union and str in members else kind  # noqa: UP007


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an annotation or a default in the source of this package."""
    return eval(ast.unparse(node), {}, names)
