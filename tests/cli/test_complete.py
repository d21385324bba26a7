"""The Tab key: what is offered for a line, by itself and in a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepcluster.cli.complete import offered
from deepcluster.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("deepcluster cl", ["cluster"]),
        ("deepcluster --v", ["--version"]),
        ("deepcluster train tiny-deepc", ["tiny-deepcluster", "tiny-deepcluster-pic", "tiny-deepcluster-v2"]),
        ("deepcluster train --min", ["--minutes"]),
        ("deepcluster train tiny-odc --data digits --method.cen", ["--method.centroid-every"]),
        ("deepcluster train --data digits --method.cluster", ["--method.clusterings"]),
        ("deepcluster train --data digits --method s", ["swav"]),
        ("deepcluster train --resume runs/a --met", []),
        ("deepcluster evaluate runs/a lin", ["linear"]),
        ("deepcluster evaluate runs/a knn --bas", ["--baseline"]),
        ("deepcluster evaluate lin", []),
        ("deepcluster visualize runs/a ma", ["map"]),
        ("deepcluster visualize runs/a map --lay", ["--layout"]),
        ("deepcluster export runs/a --format o", ["onnx"]),
        ("deepcluster cluster photos/ --algorithm te", ["temi"]),
        ("deepcluster nothing --a", []),
        ("deepcluster features photos", []),
    ],
)  # fmt: skip
def test_what_is_offered(line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_all_commands_and_their_options_are_offered() -> None:
    assert set(offered("deepcluster ")) == {*COMMANDS, "--help", "--version"}
    for command in COMMANDS:
        assert {"--help"} <= set(offered(f"deepcluster {command} --")), command


def test_the_line_ends_at_the_cursor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMP_LINE", "deepcluster expl --port 3")
    monkeypatch.setenv("COMP_POINT", "16")
    assert main(["--complete", "deepcluster", "expl", "deepcluster"]) == 0
    assert capsys.readouterr().out == "explore\n"


def test_without_torch() -> None:
    code = (
        "import sys; from deepcluster.cli.main import main\n"
        "main(['--complete']); assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    line = {"COMP_LINE": "deepcluster train tiny-odc --epo"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | line)
    assert done.returncode == 0 and done.stdout == "--epochs\n", done.stderr


def test_in_bash(tmp_path: Path) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    program = tmp_path / "deepcluster"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deepcluster "$@"\n')
    program.chmod(0o755)
    script = (
        'complete -o default -C "deepcluster --complete" deepcluster\n'
        'called=$(complete -p deepcluster | sed "s/.*-C .\\(.*\\). deepcluster/\\1/")\n'
        'COMP_LINE="deepcluster expl" COMP_POINT=16 $called deepcluster expl deepcluster'
    )
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=os.environ | path)
    assert done.stdout == "explore\n", done.stderr
