"""Who may write in a run folder, and what becomes of the run that is replaced there.

One process at a time trains or groups in a folder: it holds a lock that ends with it. A run that is replaced is moved
aside within the folder, file by file, and removed when the new one has something to go on from; until then whatever
ends the new run, a mistake or a kill, leads back to the old one. Files that are no run's stay where they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcluster.data.naming import printable
from deepcluster.distributed import is_secondary_process
from deepcluster.engine.checkpoint import LAST
from deepcluster.engine.run_folder import BETWEEN, read_config
from deepcluster.errors import DeepClusterError
from deepcluster.io import remove_leftovers, write_json
from deepcluster.lock import locked
from deepcluster.reading import read_text

LOCK = ".lock"
MOVING, ASIDE = BETWEEN
REMOVED = ".removed"
"""Folders of the earlier run: on its way there or back, whole, and on its way out. Each becomes the next by one rename,
so that a kill leaves no doubt."""
KEPT = ".kept"
"""File in them with the names in the run folder that both runs share."""

OWN = re.compile(
    r"(run\.json|metrics\.jsonl|model\.safetensors|(assignment|distance)\.npy|bad_images\.csv|report\.html"
    r"|checkpoints/((last|previous|best|epoch-\d+)\.ckpt|best\.safetensors)"
    r"|tensorboard/events\.out\.tfevents\.[^/]+"
    r"|features/(table\.json|part-\d+-\d+\.(npy|json))"
    r"|evaluation/(clusters|knn|linear|low-shot|mlp|voc|retrieval)[\w-]*\.(json|state|npy|npy\.digest|safetensors|png)"
    r"|pictures/(filters|activations|top-images|neighbors|clusters?|sizes|purity|confusion|history|map|compare)"
    r"(-[^/]+)?\.png"
    r"|explore/((vectors|map|other)-.+|lock)"
    r"|\.features(-\d+)?\.npy|(.+/)?\.[^/]+\.part)"
)
"""Files that we write in a run folder. Edits and exports of the explorer are work of its user, and not among them."""
FOLDERS = ("checkpoints", "tensorboard", "features", "evaluation", "pictures", "explore")

Warn = Callable[[str], object]


def silent(line: str) -> None:
    """Says nothing."""


@contextmanager
def occupy_to_train(folder: Path, *, resume: bool, overwrite: bool, warn: Warn = silent) -> Iterator[None]:
    """Holds `folder` for a run that trains; what it replaces is there again if it ends without a checkpoint.

    Raises:
        DeepClusterError: another process writes in it, it holds another run or other files, or cannot be written.
    """
    with _hold(folder, warn):
        _put_back(folder, warn)
        there = (folder / "run.json").exists()
        if resume:
            read_config(folder)
        elif there and not overwrite:
            raise DeepClusterError(
                f"{folder} already holds a run: go on with `deepcluster train --resume {folder}`, choose another --out,"
                " or replace it with --overwrite."
            )
        elif not there:
            refuse_other_files(folder)
        try:
            if there and not resume:
                move_aside(folder)
            _make_ready(folder)
            yield
        except BaseException as error:
            started = resume or (folder / "checkpoints" / LAST).exists()
            if _is_between(folder):
                _put_back(folder)
            elif isinstance(error, DeepClusterError) and not started:
                discard(folder)  # a mistake leaves nothing that would stand in the way of the next try
            raise


@contextmanager
def occupy_to_group(
    folder: Path, *, goes_on: Callable[[], bool], judge: Callable[[], Collection[str]], warn: Warn = silent
) -> Iterator[None]:
    """Holds `folder` for a grouping of images; what it replaces is there again if it fails.

    Args:
        goes_on: whether the run in `folder` is an unfinished grouping, which is then gone on with.
        judge: the names in `folder` of what the run there and the new one share; raises where it is not to be replaced.

    Raises:
        DeepClusterError: as `occupy_to_train`, or from `judge`.
    """
    with _hold(folder, warn):
        unfinished = (folder / "run.json").exists() and goes_on()
        if not (unfinished and _kept(folder) <= {*judge()}):  # else what the earlier run shares stays as it is
            _put_back(folder, warn)
            unfinished = (folder / "run.json").exists() and goes_on()
        there = (folder / "run.json").exists()
        shared = judge() if there else ()
        if not there:
            refuse_other_files(folder)
        try:
            if unfinished:
                discard(folder, {"run.json", *shared})
            elif there:
                move_aside(folder, shared)
            _make_ready(folder)
            yield
        except (DeepClusterError, OSError):
            _put_back(folder)
            raise
        release_earlier(folder)


def settle(folder: Path, warn: Warn = silent) -> None:
    """Puts a run back that a killed command was about to replace, before the run in `folder` is read to go on with it;
    DeepClusterError where another process writes in it."""
    waited = time.monotonic()
    while is_secondary_process() and _is_between(folder) and time.monotonic() - waited < 60:
        time.sleep(0.1)  # the first process does it
    if not is_secondary_process() and _is_between(folder):
        with _hold(folder, warn):
            _put_back(folder, warn)


def release_earlier(folder: Path) -> None:
    """Removes the run that was moved aside, since the new one has come far enough."""
    if (folder / ASIDE).exists():
        os.rename(folder / ASIDE, folder / REMOVED)
    shutil.rmtree(folder / REMOVED, ignore_errors=True)


def move_aside(folder: Path, kept: Collection[str] = ()) -> None:
    """Moves the files of the run in `folder` to `ASIDE`, but for those under the names `kept`."""
    moving = folder / MOVING
    moving.mkdir()
    (moving / KEPT).write_text("\n".join(kept), encoding="utf-8")
    for file in _own_files(folder, kept):
        place = moving / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(file, place)
    _remove_empty(folder)
    os.rename(moving, folder / ASIDE)


def discard(folder: Path, kept: Collection[str] = ()) -> None:
    """Removes the files of the run in `folder`, but for those under the names `kept`."""
    for file in _own_files(folder, kept):
        file.unlink(missing_ok=True)
    _remove_empty(folder)


def refuse_other_files(folder: Path) -> None:
    """A new run needs a new or empty folder; DeepClusterError where there are files that no killed run left."""
    for path in folder.iterdir():
        left_over = path.name in (".try", LOCK, REMOVED) or (path.name.startswith(".") and path.name.endswith(".part"))
        if not left_over:
            raise DeepClusterError(
                f"{folder} holds other files, such as {path.name}, and no run: choose an empty or new folder as --out."
            )


@contextmanager
def _hold(folder: Path, warn: Warn) -> Iterator[None]:
    """The lock of `folder`, which is made, and removed where nothing came of it."""
    if printable(str(folder)) != str(folder):  # TensorBoard and safetensors write to names in UTF-8 only
        raise DeepClusterError(
            f"The name of the run folder, {printable(str(folder))}, is not in UTF-8: choose another."
        )

    def in_use(who: str) -> str:
        return f"{folder} is in use: {who} is writing a run there; wait until it is done, stop it, or choose another."

    no_locks = f"the disk of {folder} has no locks: make sure that no other process trains in this folder."
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(_remove_if_empty, folder)
            held.enter_context(locked(folder / LOCK, in_use, lambda: warn(no_locks)))
        except OSError as error:
            raise DeepClusterError(
                f"The run folder {folder} cannot be written ({error.strerror}): choose another --out."
            ) from error
        yield


def _is_between(folder: Path) -> bool:
    return (folder / ASIDE).exists() or (folder / MOVING).exists()


def _kept(folder: Path) -> set[str]:
    """What the run in `folder` shares with the one that was moved aside."""
    file = folder / ASIDE / KEPT
    return set(read_text(file, advice=f"move {file.parent} away.").splitlines()) if file.exists() else set()


def _put_back(folder: Path, warn: Warn = silent) -> None:
    """Undoes `move_aside`, however far it came, and removes what the new run has written."""
    moving = folder / MOVING
    if (folder / ASIDE).exists():
        discard(folder, _kept(folder))
        os.rename(folder / ASIDE, moving)
    if not moving.exists():
        return
    for file in _own_files(moving):
        place = folder / file.relative_to(moving)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    shutil.rmtree(moving)
    warn(f"{folder} was to be replaced, and that was cut short: the earlier run is back in its place.")


def _make_ready(folder: Path) -> None:
    """Removes what killed processes left, and makes sure that the folder can be written."""
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    remove_leftovers(folder)
    for features in folder.glob(".features*.npy"):
        features.unlink(missing_ok=True)
    write_json(folder / ".try", {})
    (folder / ".try").unlink()


def _own_files(folder: Path, kept: Collection[str] = ()) -> list[Path]:
    """Files of a run, and links in the place of its folders."""
    found = []
    for root, folders, files in os.walk(folder):
        if Path(root) == folder:
            folders[:] = [name for name in folders if name in FOLDERS and name not in kept]
            links = [name for name in folders if (folder / name).is_symlink()]
            files = [name for name in files if name not in kept] + links
        for name in files:
            file = Path(root, name)
            if (file.is_symlink() and name in FOLDERS) or OWN.fullmatch(file.relative_to(folder).as_posix()):
                found.append(file)
    return found


def _remove_empty(folder: Path) -> None:
    """Removes a run's folders that hold nothing any more."""
    for name in FOLDERS:
        for root, _, _ in os.walk(folder / name, topdown=False):
            _remove_if_empty(Path(root))


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
