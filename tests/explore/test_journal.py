"""Edits: whatever is done can be undone, and a journal read again is where it was."""

from __future__ import annotations

import json
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
from deepcluster.explore.journal import Journal

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


def test_a_last_line_cut_short_is_dropped_and_written_over(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    edited(file)
    whole = file.read_bytes()
    for cut in (1, 7, 20):
        file.write_bytes(whole[:-cut])
        journal = Journal(file, Groups(FOUND))
        assert journal.can_undo == "merge 2 clusters"
        journal.do({"op": "hide", "clusters": [4], "hidden": True})
        assert Journal(file, Groups(FOUND)).groups.hidden == {4}
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


@pytest.mark.parametrize("line", ["{", "[]", '{"do": {"op": "merge"}}', '{"do": 3}', '{"redo": true}', '{"x": 1}'])
def test_damage_before_the_last_line_is_told(tmp_path: Path, line: str) -> None:
    file = tmp_path / "edits.jsonl"
    edited(file)
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, first, line, *rest]) + "\n")
    with pytest.raises(DeepClusterError, match=r"Line 3 of .*edits\.jsonl is damaged"):
        Journal(file, Groups(FOUND))


def test_edits_of_another_clustering_are_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    edited(file)
    other = Groups(FOUND[::-1].copy())
    journal = Journal(file, other)
    assert journal.set_aside == tmp_path / "edits-earlier-1.jsonl" and journal.set_aside.exists()
    assert other.group.tolist() == FOUND[::-1].tolist() and journal.can_undo is None
    journal.do({"op": "hide", "clusters": [4], "hidden": True})
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
