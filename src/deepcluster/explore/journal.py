"""Edits in an append-only file, so that all of them can be undone, also after a restart or a kill.

The file has one JSON object a line: what it is of, then `{"do": edit}`, `{"undo": true}` and `{"redo": true}` in the
order they happened, each with a seal of itself and of the clustering. What is no such line is left out and told.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from deepcluster.digest import digest
from deepcluster.errors import DeepClusterError
from deepcluster.explore.groups import Groups, Patch, describe
from deepcluster.io import append, keep_copy, write_text
from deepcluster.lock import locked
from deepcluster.reading import judged, parse_json, read_bytes
from deepcluster.seal import json_seal

FORMAT = "deepcluster edits"
VERSION = 1
MOST_BYTES, MOST_LINE = 1 << 30, 1 << 26
"""Bytes of a journal, and of an edit in it; one of all of a million images has 8 MB."""


class ChangedMeanwhile(DeepClusterError):
    """The edit to undo or redo is not the one that the page knows as the last."""


class Journal:
    """The edits of `groups`, read from and written to `file`.

    Args:
        file: made with the first edit.
        groups: as they were found; edits of the file are done to them.

    Attributes:
        revision: another number after every edit, undo and redo; see `undo`.
        notice: what of the file was left out, in a sentence; None = nothing. The next edit keeps a copy of such a file.

    Raises:
        DeepClusterError: the file cannot be read.
    """

    def __init__(self, file: Path, groups: Groups) -> None:
        self.file, self.groups = file, groups
        self.done: list[tuple[Mapping[str, Any], Patch]] = []  # rows of the file, and what takes them back
        self.undone: list[tuple[Mapping[str, Any], Patch]] = []
        self.revision = 0
        self.notice: str | None = None
        self._mark = digest(groups.original.astype("<i8"))  # edits apply to these clusters and to no others
        self._size, self._kept_as = 0, "damaged"
        self._read()

    @property
    def can_undo(self) -> str | None:
        """What the next undo would undo, in words."""
        return describe(self.done[-1][0]["do"]) if self.done else None

    @property
    def can_redo(self) -> str | None:
        """What the next redo would redo, in words."""
        return describe(self.undone[-1][0]["do"]) if self.undone else None

    def do(self, edit: Mapping[str, Any]) -> None:
        """Make an edit and store it.

        Raises:
            DeepClusterError: it does not fit the clusters, or cannot be written; then nothing has changed.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {"do": edit, "at": now, "next": self.groups.next}
        back = self.groups.apply(self.groups.plan(edit))
        try:
            self._append(row)
        except DeepClusterError:
            self.groups.apply(back)
            raise
        self.done.append((row, back))
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
        row, patch = source.pop()
        target.append((row, self.groups.apply(patch)))

    def _read(self) -> None:
        if not self.file.exists():
            return
        with judged(self.file, "check the file and its permissions, or move it away to begin without edits."):
            content = read_bytes(self.file, MOST_BYTES)
        whole, wrong = False, {}
        for number, line in enumerate(content.splitlines(), 1):
            try:
                row = _row(line)
                if row.get("format") == FORMAT and row.get("version") == VERSION:
                    _unseal(row, {})
                    whole = row.get("assignment") == self._mark
                    if not whole and number == 1:  # the run was trained further
                        self._kept_as = "earlier"
                        self.notice = (
                            f"{self.file.name} holds edits of an earlier clustering, not done to this one: the"
                            f" next edit keeps them as {self._free(self._kept_as).name}."
                        )
                        return
                else:
                    self._repeat(row, whole)
            except Exception as error:  # foreign values fail in as many ways as there are edits
                wrong[number] = " ".join(str(error).split()).rstrip(".") or type(error).__name__
                if not line.startswith((b'{"undo"', b'{"redo"')):
                    self.done.append(({}, self.groups.apply(Patch())))  # what an undo that follows takes back
        self.done, self.undone = ([pair for pair in kept if pair[0]] for kept in (self.done, self.undone))
        if wrong:
            first = next(iter(wrong))
            self.notice = (
                f"{self.file.name}: {_lines(list(wrong))} left out (line {first}: {wrong[first][:120]}); all others"
                f" are done, and the next edit keeps the file as it was as {self._free(self._kept_as).name}."
            )
        elif content.endswith(b"\n"):
            self._size = len(content)

    def _repeat(self, row: dict[str, Any], whole: bool) -> None:
        """Does what a row says; an exception where it is damaged, says something else, or does not fit the clusters.

        Args:
            whole: the file says that it is of this clustering; otherwise the row's seal must.
        """
        if not _unseal(row, {"assignment": self._mark}) and not whole:
            raise ValueError("it does not say what clusters it is of")
        if row in ({"undo": True}, {"redo": True}):
            self._step(*row)
            return
        if not {"do"} <= row.keys() <= {"do", "at", "next"}:
            raise ValueError("it is no edit")
        groups, following = self.groups, row.get("next", self.groups.next)
        if following != groups.next:  # an edit that was left out made clusters, or took some back
            used = max(int(groups.group.max(initial=-1)), int(groups.original.max(initial=-1)))
            if type(following) is not int or not used < following <= groups.next + len(groups):
                raise ValueError("its clusters are not those there are")
            groups.next = following
        self.done.append((row, groups.apply(groups.plan(row["do"]))))
        self.undone.clear()

    def _free(self, why: str) -> Path:
        """A name beside the journal that is not taken."""
        names = (f"{self.file.stem}-{why}-{count}.jsonl" for count in itertools.count(1))
        return next(path for path in map(self.file.with_name, names) if not path.exists())

    def _append(self, row: Mapping[str, Any]) -> None:
        text = self._line(row)
        try:
            size = self.file.stat().st_size
        except OSError:
            size = 0
        if self._size and size == self._size:
            append(self.file, text.encode(), self._size)
            self._size += len(text)
            return
        # There is no file yet; or what it holds is not all known here, or somebody deleted or changed it meanwhile.
        if size:
            keep_copy(self.file, self._free(self._kept_as))
        text = "".join(map(self._line, self._rows())) + text
        write_text(self.file, text)
        self._size = len(text)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """A journal that leads to where things stand, with all that can be undone and done again."""
        yield {"format": FORMAT, "version": VERSION, "assignment": self._mark, "images": len(self.groups)}
        for row, _ in (*self.done, *reversed(self.undone)):
            yield row
        for _ in self.undone:
            yield {"undo": True}

    def _line(self, row: Mapping[str, Any]) -> str:
        """A row of the file, in ASCII."""
        return json.dumps({**row, "crc32": json_seal({"assignment": self._mark, **row})}, ensure_ascii=True) + "\n"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep a second explorer from editing the same run: a DeepClusterError where there is one already."""
    file = folder / "explore" / "lock"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a run that cannot be written to
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(
                locked(file, lambda who: f"{folder} is open in another explorer ({who}): use that page, or stop it.")
            )
        yield


def _row(line: bytes) -> dict[str, Any]:
    if not line.strip(b"\0 "):
        raise ValueError("it is empty")
    if len(line) > MOST_LINE:
        raise ValueError(f"it has {len(line):,} bytes")
    row = parse_json(line.decode("utf-8-sig"))
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    return row


def _unseal(row: dict[str, Any], more: Mapping[str, Any]) -> bool:
    """Takes the seal out of a row, and whether there was one; a ValueError where the row is not what was written."""
    if "crc32" not in row:
        return False
    if row.pop("crc32") != json_seal({**more, **row}):
        raise ValueError("it is not what was written for these clusters")
    return True


def _lines(numbers: list[int]) -> str:
    """Numbers of lines in words, the first few of them."""
    if len(numbers) == 1:
        return f"line {numbers[0]} was"
    more = f" and {len(numbers) - 8:,} more" if len(numbers) > 8 else ""
    return f"lines {', '.join(map(str, numbers[:8]))}{more} were"
