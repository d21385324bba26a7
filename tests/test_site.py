"""The site of docs/: it is built without a warning, shows what it includes, and asks nobody else for anything."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import deepcluster
from deepcluster import clustering

ROOT = Path(__file__).parents[1]
HELP = ROOT / "tests" / "cli" / "help"


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    public = [f"deepcluster.{name}" for name in deepcluster.__all__ if name != "PRESETS"]
    public += [f"deepcluster.clustering.{name}" for name in clustering.__all__]
    assert sorted(re.findall(r"^::: (.+)$", text, re.M)) == sorted(public)


def test_every_help_page_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    linked = re.findall(r"^\[`[^]]+`\]\(\.\./tests/cli/help/([\w-]+\.txt)\)$", text, re.M)
    assert sorted(linked) == sorted(file.name for file in HELP.iterdir())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The HTML of each page by its name."""
    if find_spec("mkdocs") is None or find_spec("mkdocstrings_handlers") is None:
        pytest.skip("mkdocs is not installed; `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return {page.name: page.read_text("utf-8") for page in folder.glob("*.html")}


@pytest.mark.slow
def test_pages_load_nothing_from_others(site: dict[str, str]) -> None:
    """Links to others are for readers to follow; scripts, styles, fonts and pictures are the site's own."""
    for name, text in site.items():
        loaded = re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*(?:href|src|srcset)=\"([^\"]+)", text)
        assert loaded and not [each for each in loaded if re.match(r"(?:https?:)?//", each)], name
        assert "default-src 'self' 'unsafe-inline' data: blob:\"" in text, name  # the browser refuses all others


@pytest.mark.slow
def test_pages_show_what_they_include(site: dict[str, str]) -> None:
    shown = html.unescape(re.sub(r"<[^>]+>", "", site["cli.html"]))
    for file in HELP.iterdir():
        assert file.read_text("utf-8").strip() in shown, file.name
    assert "from the last checkpoint of the run that" in re.sub(r"<[^>]+>", "", site["api.html"])
    assert "Apache-2.0" in site["index.html"] and "Add a method" in site["contributing.html"]
    for name, text in site.items():  # a table or block that the forge shows, and this Markdown does not
        prose = re.sub(r"<pre.*?</pre>|<code.*?</code>|<script.*?</script>", "", text, flags=re.S)
        assert not re.findall(r"^.*(?:\|--|```|^:::|\]\(|\*\*).*$", prose, re.M), name
