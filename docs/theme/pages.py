"""Pages of the site that are files elsewhere: those at the root, and the help pages that the tests compare."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
HELP = r"^\[`?[^]]+\]\(\.\./(tests/cli/help/[\w-]+\.txt)\)$"
"""A line that links to a help page: the site shows the page in its place."""


def on_files(files: Files, config: Any) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=links((ROOT / name).read_text("utf-8"), "docs/")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(HELP, help_page, links(markdown, "../"), flags=re.M)


def links(text: str, folder: str) -> str:
    """The links of a page to files of docs/ and to pages at the root, as they are in the site."""
    for name, page in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}(?=[#)])", f"]({page}", text)
    return text.replace(f"]({folder}", "](") if folder == "docs/" else text


def help_page(found: re.Match[str]) -> str:
    return "```text\n" + (ROOT / found[1]).read_text("utf-8") + "```"
