"""README and docs say nothing that is not so: commands, options, scripts, pictures and Python are looked up.

Commands are parsed by the real command line up to the point where the work would begin.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import inspect
import re
import runpy
import shlex
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deepcluster.cli import evaluate, visualize
from deepcluster.cli.main import main
from deepcluster.cli.options import Function
from deepcluster.config import names
from deepcluster.methods.params import METHODS
from deepcluster.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {"PRESET": "deepercluster-vgg16", "WHAT": "filters", "PICTURE": "filters", "PROTOCOL": "knn", "N": "5"}
"""What stands for a value in the sentences of a page, where the parser needs a real one."""
GIVEN = ("x", "unit_features", "new_z", "picture")
"""Names that blocks of Python use without making them: tables of features, an image."""
FOREIGN = {
    "--x",
    "--y",
    "--neighbors",
    "--image",
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-conf",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--rdzv-id",
    "--signal",
    "--complete",
}
"""Options of Embedding Atlas, torchrun and SLURM that the pages name, and the one that shells call."""


class Line(NamedTuple):
    """A command of a page, or a piece of one."""

    page: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """Language, line number and text of each block of code, indented ones too."""
    text = page.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        yield found[1], text[: found.start(2)].count("\n") + 1, found[2]
    unfenced = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S)
    for found in re.finditer(r"(?<=\n\n)(?: {4}\S.*\n(?:\n(?= {4}))?)+", unfenced):
        yield "", text[: found.start()].count("\n") + 1, inspect.cleandoc(found[0])


def spans(page: Path) -> Iterator[Line]:
    """Each piece of code within a sentence, which may go over the end of a line."""
    text = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), page.read_text(), flags=re.M | re.S)
    for found in re.finditer(r"`([^`]+)`", text):
        if "\n\n" not in found[1]:
            yield Line(page.name, text[: found.start()].count("\n") + 1, " ".join(found[1].split()))


def code_lines(page: Path) -> Iterator[Line]:
    """Each line of the blocks that are not Python, lines that go on joined, and each piece of code in a sentence."""
    for language, number, text in blocks(page):
        if language != "python":
            for offset, line in enumerate(re.sub(r"\\\n", lambda _: "\0", text).split("\n")):
                before = text.split("\n")[: offset + line.count("\0")]
                yield Line(page.name, number + len(before), " ".join(line.replace("\0", " ").split()))
    yield from spans(page)


LINES = [line for page in PAGES for line in code_lines(page)]
STARTED = r"(?:srun |torchrun .*-m )?"
COMMANDS = [line for line in LINES if re.match(rf"{STARTED}deepcluster [a-z]+ ", line.text)]
FRAGMENTS = [line for line in LINES if line.text.split(" ")[0] in PRESETS and " --" in line.text]
"""Presets with options, without `deepcluster train` before them."""
SCRIPTS = [line for line in LINES if re.search(r"(?:^| )(?:python )?[\w/]+\.py(?: |$)", line.text)]
PYTHON = [
    Line(page.name, number, text)
    for page in PAGES
    for language, number, text in blocks(page)
    if language == "python" or re.match(r"(from|import) \w", text)
]


class Parsed(Exception):
    """Raised in place of the work of a command."""


def words_of(text: str) -> list[str]:
    """The words of a command without `deepcluster`, its comment, and its placeholders."""
    text = re.sub(rf"^{STARTED}deepcluster ", "", text)
    text = re.sub(r"^train \.\.\.", "train tiny-deepcluster --data S --out R", text)
    if text.startswith("train --data"):  # settings are chosen from the images, and from weights that need no download
        text = re.sub(r"photos/|cifar/\w+|curated\.json", "digits", text)
        text = text.replace("--from auto", "--from timm:tf_efficientnet_lite0")
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(text, comments=True)]


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop where their options are parsed."""

    def stop(*_: Any, **__: Any) -> None:
        raise Parsed

    monkeypatch.setattr(Function, "call", stop)
    for module in (evaluate, visualize):  # these look for the images before anything else
        monkeypatch.setattr(module, "must_exist", lambda source: None)


def check_command(words: list[str]) -> None:
    if words[:1] in (["evaluate"], ["visualize"]) and not {"-h", "--help"} & set(words):
        needs_data = words[0] == "evaluate" and "--data" not in words
        words = [*words, "--data", "S"] if needs_data else words
    try:
        status = main(words)
    except Parsed:
        return
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 0 and {"-h", "--help"} & set(words)


def test_pages_are_read() -> None:
    assert len(COMMANDS) > 80 and len(FRAGMENTS) > 3 and len(SCRIPTS) > 30 and len(PYTHON) >= 5


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("line", COMMANDS, ids=str)
def test_command_is_parsed(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(line.text)
    try:
        check_command(words)
    except AssertionError:
        pytest.fail(f"{line}\n{capsys.readouterr().err}")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("line", FRAGMENTS, ids=str)
def test_preset_with_options_is_parsed(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        check_command(["train", *words_of(line.text), "--data", "S", "--out", "R"])
    except AssertionError:
        pytest.fail(f"{line}\n{capsys.readouterr().err}")


def known_options() -> set[str]:
    """Every option of every command; the help pages are compared with the parser by tests/cli/test_help.py."""
    found = set(FOREIGN)
    for file in (ROOT / "tests" / "cli" / "help").glob("*.txt"):
        found |= set(re.findall(r"--[a-z][\w.-]*", file.read_text()))
    for preset in PRESETS.values():
        found |= {f"--{name.replace('_', '-')}" for name in names(preset.run)}
    for script in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.py")):
        found |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text()))
        found |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", script.read_text(), re.M)}
    return found


def test_every_option_named_exists() -> None:
    known = known_options()
    unknown = [
        f"{line}: {option}"
        for line in LINES
        if not line.text.startswith(("#", "pip ", "pytest "))
        for option in re.findall(r"(?:^|(?<=[ |`/(]))--[a-z][\w.-]*", line.text)
        if option.rstrip(".") not in known and f"{option}*" not in line.text
    ]
    assert not unknown, "\n".join(unknown)


def script_words(line: Line) -> tuple[Path, list[str]]:
    """The script that a line names, and its arguments."""
    words = shlex.split(line.text, comments=True)
    position = next(number for number, word in enumerate(words) if word.endswith(".py"))
    named = words[position]
    folders = (ROOT, ROOT / "examples" / "reproduce", ROOT / "src" / "deepcluster")
    script = next((folder / named for folder in folders if (folder / named).is_file()), ROOT / named)
    return script, words[position + 1 :]


@pytest.mark.parametrize("line", SCRIPTS, ids=str)
def test_script_exists_and_has_the_options(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, words = script_words(line)
    assert script.is_file(), line
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if "pytest" in line.text or not options:
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> None:
        parse_args(self, *given)
        raise Parsed

    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setenv("COLUMNS", "200")
    if script.parent.name == "benchmarks":
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except Parsed:
            return
        except SystemExit:
            missing = required_options(capsys.readouterr().err)
            assert missing and not missing & set(options), line
            return
        pytest.fail(f"{line}: parses no options")
    monkeypatch.setattr(sys, "argv", [str(script), *(words[:1] if words[0] in PRESETS else []), "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    text = capsys.readouterr().out
    assert all(re.search(rf"{re.escape(option)}\b", text) for option in options), line


def required_options(message: str) -> set[str]:
    """The options that argparse misses: a sentence may leave them out."""
    found = re.search(r"the following arguments are required: (.*)", message)
    return set(found[1].split(", ")) if found else set()


def test_scripts_and_files_named_without_options_exist() -> None:
    for line in LINES:
        for named in re.findall(r"\b(?:benchmarks|examples|tests)/[\w/]+\.py\b", line.text):
            assert (ROOT / named).is_file(), line


class Checker(ast.NodeVisitor):
    """Follows imports, attributes and calls of deepcluster through a block of Python.

    A value is known where it is imported, made by calling a class, or returned by a function that declares its type.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.wrong: list[str] = []

    def visit_Module(self, node: ast.Module) -> None:
        for each in ast.walk(node):  # of functions, loops and comprehensions
            if isinstance(each, ast.FunctionDef):
                self.known[each.name] = None
            elif isinstance(each, ast.arg):
                self.known[each.arg] = None
            elif isinstance(each, ast.comprehension | ast.For):
                self.known |= {name.id: None for name in ast.walk(each.target) if isinstance(name, ast.Name)}
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            module = import_module(alias.name)
            self.known[alias.asname or alias.name] = module

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = import_module(node.module or "")
        for alias in node.names:
            self.known[alias.asname or alias.name] = getattr(module, alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        value = self.value(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.known[target.id] = value
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    self.known.setdefault(name.id, None)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.value(node.value)
        if owner is not None and not has(owner, node.attr):
            self.wrong.append(f"{getattr(owner, '__name__', owner)} has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.value(node.func)
        if called is None or not getattr(called, "__module__", "").startswith("deepcluster"):
            return
        method = isinstance(node.func, ast.Attribute) and inspect.isclass(self.value(node.func.value))
        given = [None] * (len(node.args) + method)
        try:
            inspect.signature(called).bind(*given, **{str(word.arg): None for word in node.keywords})
        except TypeError as error:
            self.wrong.append(f"{ast.unparse(node)}: {error}")

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id not in {*self.known, *GIVEN, *dir(builtins)}:
            self.wrong.append(f"{node.id} is not defined")

    def value(self, node: ast.expr) -> Any:
        """A module, function or class; for an instance its class; None = unknown."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            found = None if owner is None else inspect.getattr_static(owner, node.attr, None)
            if inspect.ismodule(owner):
                return getattr(owner, node.attr, None)
            return found if inspect.isfunction(found) else None
        if isinstance(node, ast.Call):
            called = self.value(node.func)
            if inspect.isclass(called):
                return called
            return declared_result(called) if inspect.isfunction(called) else None
        return None


def declared_result(function: Any) -> Any:
    """The class of deepcluster that a function declares to return."""
    try:
        kind = typing.get_type_hints(function).get("return")
    except NameError:  # a name that is imported for type checkers only
        return None
    return kind if inspect.isclass(kind) and kind.__module__.startswith("deepcluster") else None


def has(owner: Any, name: str) -> bool:
    """Whether a module, or an instance of a class, has an attribute; those set in its methods count."""
    if hasattr(owner, name) or not inspect.isclass(owner):
        return hasattr(owner, name)
    own = [kind for kind in owner.__mro__ if kind.__module__.startswith("deepcluster")]
    return any(name in inspect.get_annotations(kind) for kind in own) or any(
        re.search(rf"self\.{name}\b(?:, self\.\w+)*[^=\n]* = ", inspect.getsource(kind)) for kind in own
    )


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.number}")
def test_python_names_what_exists(block: Line) -> None:
    checker = Checker()
    checker.visit(ast.parse(block.text))
    assert not checker.wrong, f"{block.page}:{block.number}: {checker.wrong}"


def test_python_named_in_sentences_exists() -> None:
    for page in PAGES:
        for line in spans(page):
            if found := re.match(r"deepcluster((?:\.\w+)+)(?:\(|$)", line.text):
                value: Any = import_module("deepcluster")
                for name in found[1].split(".")[1:]:
                    if inspect.ismodule(value) and not hasattr(value, name):
                        value = import_module(f"{value.__name__}.{name}")
                    else:
                        value = getattr(value, name)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in LINES:
        if target := re.match(r"make ([\w-]+)$", line.text):
            assert re.search(rf"^{target[1]}:", makefile, re.M), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("method", [name for name in METHODS if name != "frozen"])
def test_the_page_of_a_method_has_all_of_its_options(method: str) -> None:
    text = (ROOT / "docs" / f"method-{method}.md").read_text()
    rows = dict(re.findall(r"^\| `--method\.([\w-]+)` \| (\S+) \| .+ \|$", text, re.M))
    defaults = {field.name.replace("_", "-"): str(field.default) for field in fields(METHODS[method][0])}  # type: ignore[arg-type]
    assert rows == defaults
    assert all(f"\n## {part}\n" in text for part in ("In equations", "Knobs", "What goes wrong", "What it reaches"))
