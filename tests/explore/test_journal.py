"""Edits: whatever is done can be undone, and a journal read again is where it was."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deepcluster.errors import DeepClusterError
from deepcluster.explore.groups import Groups, Patch, describe
from deepcluster.explore.journal import Journal, exclusive

FOUND = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, -1, 4, 4])

clusters = st.integers(-1, 9)
images = st.lists(st.integers(0, len(FOUND)), max_size=5)
edits = st.one_of(
    st.fixed_dictionaries({"op": st.just("rename"), "cluster": clusters, "name": st.text(max_size=8)}),
    st.fixed_dictionaries({"op": st.just("merge"), "clusters": st.lists(clusters, max_size=4)}),
    st.fixed_dictionaries({"op": st.just("split"), "cluster": clusters, "parts": st.lists(images, max_size=2)}),
    st.fixed_dictionaries({"op": st.just("hide"), "clusters": st.lists(clusters, max_size=3), "hidden": st.booleans()}),
    st.fixed_dictionaries({"op": st.just("move"), "images": images | st.just("selection"), "to": clusters | st.none()}),
    st.fixed_dictionaries({"op": st.just("select"), "images": images, "on": st.booleans()}),
    st.fixed_dictionaries({"op": st.just("select"), "cluster": clusters, "on": st.booleans()}),
    st.fixed_dictionaries({"op": st.just("select"), "all": st.just(True), "on": st.booleans()}),
)


def as_plain(groups: Groups) -> dict[str, Any]:
    return {
        "group": groups.group.tolist(), "selected": groups.selected.tolist(), "names": dict(groups.names),
        "hidden": set(groups.hidden), "next": groups.next,
    }  # fmt: skip


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(edits | st.sampled_from(["undo", "redo"]), max_size=25))
def test_any_edits_are_undone_and_read_back(sequence: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "edits.jsonl"
        groups = Groups(FOUND)
        fresh = as_plain(groups)
        journal = Journal(file, groups)
        trail = [fresh]  # the state after each edit that stands: the oracle of undo
        ahead: list[dict[str, Any]] = []
        for step in sequence:
            before = as_plain(groups)
            try:
                if step == "undo":
                    journal.step("undo")
                    ahead.append(trail.pop())
                elif step == "redo":
                    journal.step("redo")
                    trail.append(ahead.pop())
                else:
                    journal.do(step)
                    trail.append(as_plain(groups))
                    ahead.clear()
            except DeepClusterError:
                assert as_plain(groups) == before
            assert as_plain(groups) == trail[-1]
        again = Groups(FOUND)
        read = Journal(file, again)
        assert as_plain(again) == as_plain(groups)
        assert (read.can_undo, read.can_redo) == (journal.can_undo, journal.can_redo)
        while read.can_undo:
            read.step("undo")
        assert as_plain(again) == fresh
        while read.can_redo:
            read.step("redo")
        assert as_plain(again) == (ahead[0] if ahead else trail[-1])
        np.testing.assert_array_equal(groups.original, FOUND)


def edited(file: Path) -> Journal:
    journal = Journal(file, Groups(FOUND))
    journal.do({"op": "merge", "clusters": [0, 1]})
    journal.do({"op": "rename", "cluster": 2, "name": '  <b>"two"\n\N{FOX FACE} '})
    return journal


def test_what_edits_do(tmp_path: Path) -> None:
    groups = edited(tmp_path / "e.jsonl").groups
    assert groups.group.tolist() == [0, 0, 0, 0, 0, 2, 2, 2, 3, -1, 4, 4]
    assert groups.name(2) == '<b>"two" \N{FOX FACE}' and groups.name(3) == "cluster 3"
    groups.apply(groups.plan({"op": "split", "cluster": 2, "parts": [[5], [7]]}))
    assert groups.group[5:8].tolist() == [5, 2, 6] and groups.next == 7
    groups.apply(groups.plan({"op": "select", "images": [5, 6], "on": True}))
    groups.apply(groups.plan({"op": "move", "images": "selection", "to": 3}))
    assert groups.group[5:9].tolist() == [3, 3, 6, 3]
    groups.apply(groups.plan({"op": "move", "images": [9], "to": None}))
    assert groups.group[9] == 7
    groups.apply(groups.plan({"op": "hide", "clusters": [3, 4], "hidden": True}))
    assert groups.hidden == {3, 4}
    groups.apply(groups.plan({"op": "merge", "clusters": [0, 3], "into": 0}))
    assert groups.hidden == {4}, "a cluster that is gone is not hidden any more"


def test_what_is_hidden_stays_hidden_and_what_is_seen_is_not_lost() -> None:
    groups = Groups(FOUND)

    def make(**edit: Any) -> Patch:
        return groups.apply(groups.plan(edit))

    make(op="hide", clusters=[0, 3], hidden=True)
    before = as_plain(groups)
    back = make(op="split", cluster=0, parts=[[0], [1]])
    assert groups.hidden == {0, 3, 5, 6}
    groups.apply(back)
    for into in (0, None):
        assert as_plain(groups) == before
        back = make(op="merge", clusters=[0, 1], into=into)
        assert set(groups.group[:5]) == {0} and groups.hidden == {3}
        groups.apply(back)
    back = make(op="merge", clusters=[0, 3])
    assert groups.hidden == {0}, "hidden clusters alone make a hidden one"
    groups.apply(back)
    for to in (1, None):
        assert as_plain(groups) == before
        back = make(op="move", images=[8, 9], to=to)
        assert groups.hidden == {0}, "a cluster that is empty is not hidden"
        groups.apply(back)
    assert as_plain(groups) == before


def test_a_last_line_cut_short_is_told_and_the_rest_kept(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    edited(file)
    whole = file.read_bytes()
    for cut in (1, 7, 20):
        file.write_bytes(whole[:-cut])
        journal = Journal(file, Groups(FOUND))
        assert journal.can_undo == ("rename cluster 2" if cut == 1 else "merge 2 clusters")
        assert (journal.notice is None) == (cut == 1)
        journal.do({"op": "hide", "clusters": [4], "hidden": True})
        again = Journal(file, Groups(FOUND))
        assert again.groups.hidden == {4} and again.notice is None
        assert all(json.loads(line) for line in file.read_text().splitlines())


@pytest.mark.parametrize("content", [None, b"", b"{", b"x" * 5000])
def test_a_journal_that_somebody_took_away_is_written_anew(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "edits.jsonl"
    journal = edited(file)
    journal.do({"op": "hide", "clusters": [4], "hidden": True})
    journal.do({"op": "split", "cluster": 2, "parts": [[5], [7]]})
    journal.step("undo")
    journal.step("undo")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    journal.step("redo")
    again = Journal(file, Groups(FOUND))
    assert as_plain(again.groups) == as_plain(journal.groups) and again.groups.hidden == {4}
    assert (again.can_undo, again.can_redo) == ("hide 1 cluster", "split cluster 2 in 3")
    assert b"\0" not in file.read_bytes()
    for one in (journal, again):
        one.step("redo")
        for _ in range(4):
            one.step("undo")
    assert as_plain(again.groups) == as_plain(journal.groups) == as_plain(Groups(FOUND))


FOREIGN = {
    "zeros": bytes(400),
    "half": b'{"do": {"op": "mer',
    "list": b"[]",
    "no edit": b'{"x": 1}',
    "misfit": b'{"do": {"op": "merge"}}',
    "number": b'{"do": 3}',
    "nothing to redo": b'{"redo": true}',
    "nested": b'{"do": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested edit": b'{"do": {"op": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "4,300 digits": b'{"do": {"op": "rename", "cluster": ' + b"9" * 4400 + b', "name": "x"}}',
    "no UTF-8": b'{"do": "\xff"}',
    "huge": b" " * (3 << 20) + b"{",
    "next": b'{"do": {"op": "hide", "clusters": [4], "hidden": true}, "next": 9000000000000000000}',
    "head": b'{"format": "deepcluster edits", "version": 2, "assignment": "x"}',
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_what_is_no_edit_is_told_and_the_rest_kept(tmp_path: Path, line: bytes, place: int) -> None:
    """At the beginning, in the middle, and at the end."""
    file = tmp_path / "edits.jsonl"
    journal = edited(file)
    journal.do({"op": "hide", "clusters": [2], "hidden": True})
    lines = file.read_bytes().splitlines()
    file.write_bytes(found := b"\n".join([*lines[:place], line, *lines[place:]]) + b"\n" * (place < 4))
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr("deepcluster.explore.journal.MOST_LINE", 1 << 20)
        again = Journal(file, Groups(FOUND))
    assert again.notice is not None and f"line {place + 1} was left out" in again.notice and "\n" not in again.notice
    assert len(line) < 1 << 20 or "bytes" in again.notice, "not parsed"
    assert len(again.notice) < 400 and as_plain(again.groups) == as_plain(journal.groups)
    assert file.read_bytes() == found, "looking changes nothing"
    again.do({"op": "rename", "cluster": 4, "name": "after"})
    assert (tmp_path / "edits-damaged-1.jsonl").read_bytes() == found and "edits-damaged-1.jsonl" in again.notice
    last = Journal(file, Groups(FOUND))
    assert last.notice is None and as_plain(last.groups) == as_plain(again.groups)
    assert [last.step("undo") for _ in range(4)][-1] == "merge 2 clusters"


def test_every_flipped_byte_is_noticed_and_costs_one_edit(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    journal = edited(file)
    whole = file.read_bytes()
    states = []
    for place in range(len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        again = Journal(file, Groups(FOUND))
        assert again.notice is not None or as_plain(again.groups) == as_plain(journal.groups), place
        states.append(len(again.done))
    head, first, _ = (place for place, byte in enumerate(whole) if byte == ord("\n"))
    assert set(states[:head]) == {2}, "without its first line all edits are known by their seals"
    assert states[first] == 0 and 0 not in states[:first] + states[first + 1 :], "two lines were made one"


def test_numbers_of_clusters_stay_where_an_edit_is_lost(tmp_path: Path) -> None:
    """The split that follows a lost one makes the clusters it made, and an undo takes back the lost one."""
    file = tmp_path / "edits.jsonl"
    journal = Journal(file, Groups(FOUND))
    journal.do({"op": "split", "cluster": 0, "parts": [[1]]})  # cluster 5: lost below
    journal.do({"op": "split", "cluster": 2, "parts": [[6]]})
    journal.do({"op": "rename", "cluster": 6, "name": "six"})
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b"\0" * len(lines[1][:-1]) + b"\n", *lines[2:]]))
    again = Journal(file, Groups(FOUND))
    assert again.groups.group[6] == 6 and again.groups.names == {6: "six"} and again.groups.group[1] == 0
    journal.step("undo")
    journal.step("undo")
    journal.step("undo")
    journal.do({"op": "split", "cluster": 1, "parts": [[4]]})
    content = b"".join([lines[0], b"lost\n", *file.read_bytes().splitlines(keepends=True)[2:]])
    file.write_bytes(content)
    assert as_plain(Journal(file, Groups(FOUND)).groups) == as_plain(journal.groups)


def test_an_undo_of_a_lost_edit_undoes_no_other(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    edited(file).step("undo")
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], lines[1], b"lost", lines[3]]) + b"\n")
    assert Journal(file, Groups(FOUND)).can_undo == "merge 2 clusters"


def test_a_journal_without_seals_is_read(tmp_path: Path) -> None:
    """As of before there were any; and believed only where its head says what clusters it is of."""
    file = tmp_path / "edits.jsonl"
    journal = edited(file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        del row["crc32"]
        row.pop("next", None)
    for start, kept in ((0, journal.groups), (1, Groups(FOUND))):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[start:]))
        again = Journal(file, Groups(FOUND))
        assert as_plain(again.groups) == as_plain(kept) and (again.notice is None) == (start == 0)


def test_a_journal_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "edits.jsonl")
    with pytest.raises(DeepClusterError, match=r"no regular file.*move it away"):
        Journal(tmp_path / "edits.jsonl", Groups(FOUND))


def test_edits_of_another_clustering_are_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    edited(file)
    other = Groups(FOUND[::-1].copy())
    journal = Journal(file, other)
    assert journal.notice is not None and "as edits-earlier-1.jsonl" in journal.notice
    before = file.read_bytes()
    assert other.group.tolist() == FOUND[::-1].tolist() and journal.can_undo is None
    journal.do({"op": "hide", "clusters": [4], "hidden": True})
    assert (tmp_path / "edits-earlier-1.jsonl").read_bytes() == before
    assert Journal(file, Groups(FOUND[::-1].copy())).can_undo == "hide 1 cluster"


def test_an_edit_that_cannot_be_kept_is_not_made(tmp_path: Path) -> None:
    groups = Groups(FOUND)
    journal = Journal(tmp_path / "file" / "edits.jsonl", groups)
    (tmp_path / "file").write_text("where the folder would be")
    with pytest.raises(DeepClusterError, match="cannot be written"):
        journal.do({"op": "merge", "clusters": [0, 1]})
    assert groups.group.tolist() == FOUND.tolist() and journal.can_undo is None


@pytest.mark.parametrize(
    "edit",
    [
        {}, {"op": []}, {"op": "rename", "cluster": 0}, {"op": "rename", "cluster": True, "name": "x"},
        {"op": "rename", "cluster": 0, "name": "x" * 201}, {"op": "merge", "clusters": [0]},
        {"op": "merge", "clusters": [0, 1], "into": 2}, {"op": "merge", "clusters": [0, "1"]},
        {"op": "split", "cluster": 0, "parts": [[0, 1, 2]]}, {"op": "split", "cluster": 0, "parts": [[3]]},
        {"op": "split", "cluster": 0, "parts": [[0], [0]]}, {"op": "hide", "clusters": [0], "hidden": 1},
        {"op": "move", "images": [99], "to": 0}, {"op": "move", "images": [-1], "to": 0},
        {"op": "move", "images": [0], "to": 77}, {"op": "move", "images": ["0"], "to": 0},
        {"op": "move", "images": [10**30], "to": 0}, {"op": "move", "images": [0], "to": 10**30},
        {"op": "merge", "clusters": [0, 1], "into": True}, {"op": "merge", "clusters": [0, 1], "into": [0]},
        {"op": "move", "images": [], "to": 0}, {"op": "select", "images": [0]},
    ],
)  # fmt: skip
def test_edits_that_do_not_fit_are_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(DeepClusterError):
        Groups(FOUND).plan(edit)


def test_edits_in_words() -> None:
    assert describe({"op": "hide", "clusters": [1, 2], "hidden": False}) == "show 2 clusters"
    assert describe({"op": "move", "images": [3], "to": None}) == "move 1 image"
    assert describe({"op": "select", "images": "selection", "on": False}) == "deselect the selection"


def test_a_second_explorer_of_a_run_is_refused(tmp_path: Path) -> None:
    told = f"another explorer .process {os.getpid()} on"
    with exclusive(tmp_path), pytest.raises(DeepClusterError, match=told), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):  # the first has ended
        pass
