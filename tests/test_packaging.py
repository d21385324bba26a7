"""What is released: the wheel and the source archive, and what the repository says of itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import deepcluster as dc

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deepcluster"


def build(folder: Path, kind: str) -> Path:
    """The wheel or sdist, by the backend that pyproject.toml names, of a copy of what it reads."""
    copy = folder / "copy"
    shutil.copytree(PACKAGE, copy / "src" / "deepcluster", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("deepcluster-*")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", reason="setuptools is not installed; `pip install -e .` brings it")
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


def own_files() -> set[str]:
    """The files of the package, by their paths from src/."""
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {file.relative_to(PACKAGE.parent).as_posix() for file in files}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"deepcluster-{dc.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = f"deepcluster-{dc.__version__}.dist-info"
        metadata = archive.read(f"{about}/METADATA").decode()
        points = archive.read(f"{about}/entry_points.txt").decode()
    assert {name for name in names if not name.startswith(about)} == own_files()
    assert {"deepcluster/py.typed", "deepcluster/explore/static/main.js"} <= names
    assert f"{about}/licenses/LICENSE" in names and "deepcluster = deepcluster.cli.main:main" in points
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.10", "Requires-Dist: torch>=2.8"):
        assert f"\n{line}\n" in metadata


@pytest.mark.slow
def test_the_source_archive_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    (folder,) = (tmp_path / "out").iterdir()
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    (again,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {name: one.read(name) for name in one.namelist() if not name.endswith("RECORD")} == {
            name: other.read(name) for name in other.namelist() if not name.endswith("RECORD")
        }


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are lent by this environment, and deepcluster is the wheel's."""
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python, apart = str(scripts / "python"), {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, env=apart)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def said(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=apart)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said(python, "-c", "import deepcluster; print(deepcluster.__file__)").startswith(str(site))
    command = str(scripts / "deepcluster")
    assert said(command, "--version") == f"deepcluster {dc.__version__}\n"
    assert "--method.k" in said(command, "train", "tiny-deepcluster", "--help")
    said(command, "train", "tiny-deepcluster", "--data", "digits", "--out", "run", "--epochs", "1")
    said(command, "report", "run")
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()


def test_one_version_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{dc.__version__}"\n' in project
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == dc.__version__
    first = re.search(r"^## (\S+)(?: \((unreleased|\d{4}-\d\d-\d\d)\))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None and first[1] == dc.__version__ and first[2]


def test_the_citation_names_the_papers_of_the_methods() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0" and cited["authors"]
    papers = {each["url"].rpartition("/")[2] for each in cited["references"]}
    assert papers == {"1807.05520", "1905.01278", "2006.10645", "2006.09882"}


def test_hooks_before_a_commit_are_the_checks_of_make() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local" and all(hook["language"] == "system" for hook in local["hooks"])
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in local["hooks"]] == checks


@pytest.mark.parametrize("form", ["bug", "idea"])
def test_issues_ask_what_is_needed(form: str) -> None:
    found: dict[str, Any] = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert found["name"] and found["description"]
    ids = [part["id"] for part in found["body"]]
    assert len(ids) == len(set(ids)) and all(part["attributes"].get("label", "x") for part in found["body"])
    assert any(part.get("validations", {}).get("required") for part in found["body"])
    if form == "bug":
        assert "deepcluster --version" in str(found) and "deepcluster doctor" in str(found)
