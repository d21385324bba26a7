"""Every help page compared with tests/cli/help/*.txt, and the options read from signatures.

After an intended change run `UPDATE_HELP=1 pytest tests/cli/test_help.py`, which rewrites the files, and read the diff.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from deepcluster.cli.evaluate import PROTOCOLS
from deepcluster.cli.main import COMMANDS, main
from deepcluster.cli.options import Function, parse_options
from deepcluster.cli.visualize import PICTURES
from deepcluster.presets import PRESETS

FOLDER = Path(__file__).parent / "help"
PAGES: dict[str, list[str]] = {
    "deepcluster": [],
    **{name: [name] for name in COMMANDS},
    **{f"evaluate-{name}": ["evaluate", "RUN", name] for name in PROTOCOLS},
    **{f"visualize-{name}": ["visualize", "RUN", name] for name in PICTURES},
    **{
        f"train-{name}": ["train", name]
        for name in ("tiny-deepcluster", "tiny-deepcluster-v2", "tiny-swav", "tiny-odc", "tiny-deepercluster")
    },
    "train-resume": ["train", "--resume", "RUN"],
}
FUNCTIONS = {
    **{
        f"deepcluster.cli.{name}:{name}": set()
        for name in (
            "assign",
            "cluster",
            "curate",
            "doctor",
            "explore",
            "export",
            "features",
            "index",
            "presets",
            "report",
        )
    },
    **{f"deepcluster.evaluate.{target}": {"subject", "screen", "device"} for target in PROTOCOLS.values()},
    **{
        f"deepcluster.visualize.{name}:draw_{name}": {"subject", "run", "screen", "folder"}
        for name in (picture.replace("-", "_") for picture in PICTURES)
    },
}


def page(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The help page of a command, 100 characters wide."""
    try:
        assert main([*words, "--help"]) == 0
    except SystemExit as stop:
        assert not stop.code
    return "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())


@pytest.fixture(autouse=True)
def _fixed_width(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "100")
    yield


@pytest.mark.skipif(
    f"tyro=={version('tyro')} " not in (Path(__file__).parents[2] / "constraints.txt").read_text(),
    reason="the pages are those of the tyro in constraints.txt, and each draws them in its own way",
)
@pytest.mark.parametrize("name", PAGES)
def test_help_is_the_golden_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, file = page(capsys, PAGES[name]), FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_HELP"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "if the change is intended: UPDATE_HELP=1"


@pytest.mark.parametrize("name", PAGES)
def test_help_fits_into_eighty_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wide = [line for line in page(capsys, PAGES[name]).splitlines() if len(line) > 80]
    assert not [line for line in wide if "[-h]" not in line]  # tyro does not break its own line of usage


def test_every_golden_file_belongs_to_a_page() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(PAGES)


@pytest.mark.parametrize("name", PRESETS)
def test_help_of_a_preset_lists_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from deepcluster.config import names

    text = page(capsys, ["train", name])
    for setting in set(names(PRESETS[name].run)) - {"backbone.options"}:  # its parts are options instead
        option = setting.replace("_", "-")
        negated = re.sub(r"([^.]+)$", r"no-\1", option)
        assert re.search(rf"--({re.escape(option)}|{re.escape(negated)})\s", text), setting
    assert "--data" in text and "--out" in text


@pytest.mark.parametrize("target", FUNCTIONS)
def test_options_are_those_of_the_imported_function(target: str) -> None:
    """What is read from the source equals what Python makes of it; each option is described."""
    function = Function(target, FUNCTIONS[target])
    real = inspect.signature(getattr(import_module(function.module), function.name)).parameters
    assert list(function.parameters) == list(real)
    for name, (kind, field) in function.options.items():
        wanted: Any = inspect.Parameter.empty if field.default.__class__.__name__ == "_MISSING_TYPE" else field.default
        assert real[name].default == wanted and type(real[name].default) is type(wanted), name
        assert (real[name].kind is inspect.Parameter.POSITIONAL_ONLY) != field.kw_only
        text = next(item.help for item in kind.__metadata__ if hasattr(item, "help"))
        assert text and text[-1] in ".)", f"{name} has no description in Args"
    left_out = set(real) - set(function.options) - FUNCTIONS[target]
    assert all("Callable" in str(real[name].annotation) for name in left_out), left_out
    assert function.summary and "`" not in function.summary


@pytest.mark.parametrize(
    ("words", "stop", "sync_batchnorm", "replace"),
    [
        ([], False, True, False),
        (["--stop", "--no-sync-batchnorm", "--method.replace"], True, False, True),
        (["--stop", "True", "--sync-batchnorm", "False", "--method.replace", "True"], True, False, True),
        (["--stop", "False", "--sync-batchnorm", "True", "--method.replace", "False"], False, True, False),
    ],
)
def test_flags_take_true_and_false(words: list[str], stop: bool, sync_batchnorm: bool, replace: bool) -> None:
    train = Function("deepcluster.cli.train:train", {"preset", "settings", "about", "began", "source"})
    preset = PRESETS["tiny-odc"].run
    values = parse_options([train], ["--data", "a", "--out", "b", *words], prog="train", settings=preset)
    run = values["settings"]
    assert (run.stop, run.sync_batchnorm, run.method.replace) == (stop, sync_batchnorm, replace)
    assert run.epochs == preset.epochs and values["out"] == Path("b")
