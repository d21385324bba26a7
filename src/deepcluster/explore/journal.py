"""Edits in an append-only file, so that all of them can be undone, also after a restart or a kill.

The file has one JSON object a line: what it is of, then `{"do": edit}`, `{"undo": true}` and `{"redo": true}` in the
order they happened. A last line that was cut short by a kill is dropped.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.explore.groups import Groups, Patch, describe
from deepcluster.io import append, write_text

FORMAT = "deepcluster edits"
VERSION = 1


class ChangedMeanwhile(DeepClusterError):
    """The edit to undo or redo is not the one that the page knows as the last."""


class Journal:
    """The edits of `groups`, read from and written to `file`.

    Args:
        file: made with the first edit.
        groups: as they were found; edits of the file are done to them.

    Attributes:
        revision: another number after every edit, undo and redo; see `undo`.
        set_aside: where edits of an earlier clustering were put; None = there were none.

    Raises:
        DeepClusterError: the file is damaged before its last line.
    """

    def __init__(self, file: Path, groups: Groups) -> None:
        self.file, self.groups = file, groups
        self.done: list[tuple[Mapping[str, Any], Patch]] = []
        self.undone: list[tuple[Mapping[str, Any], Patch]] = []
        self.revision = 0
        self.set_aside: Path | None = None
        self._mark = digest(groups.original.astype("<i8"))  # edits apply to these clusters and to no others
        self._size = 0
        self._read()

    @property
    def can_undo(self) -> str | None:
        """What the next undo would undo, in words."""
        return describe(self.done[-1][0]) if self.done else None

    @property
    def can_redo(self) -> str | None:
        """What the next redo would redo, in words."""
        return describe(self.undone[-1][0]) if self.undone else None

    def do(self, edit: Mapping[str, Any]) -> None:
        """Make an edit and store it.

        Raises:
            DeepClusterError: it does not fit the clusters, or cannot be written; then nothing has changed.
        """
        back = self.groups.apply(self.groups.plan(edit))
        try:
            self._append({"do": edit, "at": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        except DeepClusterError:
            self.groups.apply(back)
            raise
        self.done.append((edit, back))
        self.undone.clear()
        self.revision += 1

    def step(self, which: Literal["undo", "redo"], known: int | None = None) -> str:
        """Undo the last edit or redo the last undone one, and return it in words.

        Args:
            known: the revision that the caller has seen; None = the last one, whichever it is.

        Raises:
            ChangedMeanwhile: there were edits since the revision `known`.
            DeepClusterError: there is none.
        """
        if known is not None and known != self.revision:
            raise ChangedMeanwhile(
                "Something was changed in another window, or just now: look at what would be undone or redone, and"
                " press again."
            )
        words = self.can_undo if which == "undo" else self.can_redo
        if words is None:
            raise DeepClusterError(f"There is no edit to {which}.")
        self._append({which: True})
        self._step(which)
        self.revision += 1
        return words

    def _step(self, which: str) -> None:
        source, target = (self.done, self.undone) if which == "undo" else (self.undone, self.done)
        edit, patch = source.pop()
        target.append((edit, self.groups.apply(patch)))

    def _read(self) -> None:
        try:
            text = self.file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DeepClusterError(
                f"The edits {self.file} cannot be read ({error.strerror}): check the file and its permissions."
            ) from error
        whole = text[: text.rfind(b"\n") + 1]  # a kill may have cut the last line short
        lines = whole.splitlines()
        if not lines:
            return
        try:
            head = json.loads(lines[0])
            known = head["format"] == FORMAT and head["version"] == VERSION
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise self._damaged(1, "it does not say that it holds edits")
        if head.get("assignment") != self._mark:  # the run was trained further: these are edits of its earlier clusters
            names = (f"{self.file.stem}-earlier-{count}.jsonl" for count in itertools.count(1))
            self.set_aside = next(path for path in map(self.file.with_name, names) if not path.exists())
            os.replace(self.file, self.set_aside)
            return
        for number, line in enumerate(lines[1:], 2):
            try:
                self._repeat(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, DeepClusterError) as error:
                raise self._damaged(number, str(error)) from error
        self._size = len(whole)

    def _repeat(self, row: dict[str, Any]) -> None:
        if "do" in row:
            self.done.append((row["do"], self.groups.apply(self.groups.plan(row["do"]))))
            self.undone.clear()
        elif row in ({"undo": True}, {"redo": True}):
            self._step(*row)
        else:
            raise ValueError("it is not an edit")

    def _damaged(self, number: int, why: str) -> DeepClusterError:
        return DeepClusterError(
            f"Line {number} of {self.file} is damaged ({why.rstrip('.')}): delete what follows the line before, or move"
            " the file away to begin without edits."
        )

    def _append(self, row: Mapping[str, Any]) -> None:
        text = _line(row)
        try:
            size = self.file.stat().st_size
        except OSError:
            size = 0
        if not self._size or size != self._size:
            # There is no file yet; or a kill left a line half written; or somebody deleted or changed it meanwhile.
            text = "".join(map(_line, self._rows())) + text
            write_text(self.file, text)
            self._size = len(text)
            return
        append(self.file, text.encode(), self._size)
        self._size += len(text)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """A journal that leads to where things stand, with all that can be undone and done again."""
        yield {"format": FORMAT, "version": VERSION, "assignment": self._mark, "images": len(self.groups)}
        for edit, _ in (*self.done, *reversed(self.undone)):
            yield {"do": edit}
        for _ in self.undone:
            yield {"undo": True}


def _line(row: Mapping[str, Any]) -> str:
    """A row of the file, in ASCII."""
    return json.dumps(row, ensure_ascii=True) + "\n"
