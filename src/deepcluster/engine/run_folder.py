"""The run folder: described, checked, and filled with what each clustering leaves; `occupy.py` makes it."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepcluster.config import TrainRun, UnknownSetting, as_dict, check_sizes, differing, from_dict, override
from deepcluster.data.cache import Pixels
from deepcluster.data.folder import Files
from deepcluster.data.naming import is_hidden
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.distributed import SINGLE, ProcessGroup
from deepcluster.engine.log import Screen
from deepcluster.engine.model import MODEL, PRETRAINED, Model, file_of
from deepcluster.errors import DeepClusterError, counted
from deepcluster.io import write_array, write_csv, write_json
from deepcluster.reading import judged, parse_json, read_json
from deepcluster.types import Clustering

FORMAT = 2
"""Of run.json and checkpoints; raised whenever older run folders can no longer be read."""
NEEDED = {"preset": str, "images": int, "settings": dict, "source_fingerprint": str, "data": str}
"""What every run.json says: name -> type."""
OPTIONAL = {
    "id": str, "bad_images": int, "finished": str, "k_auto": dict, "versions": dict, "backbone": str,
    "created": str, "processes": int, "seed": int, "clusterer": str, "changes": list,
}  # fmt: skip
"""What a run.json may say."""
SETTINGS = ("epochs", "batch_size", "image_size", "seed", "method", "backbone")
"""What the settings of every run hold."""
BETWEEN = (".replacing", ".replaced")
"""Folders in a run folder that hold the earlier run while another takes its place, see `engine/occupy.py`."""
IDENTITY = ("seed", "batch_size", "image_size", "method", "optimizer", "backbone", "data")
"""The settings by which runs of the same images differ, wherever and for however long they are trained."""
LENGTH = ("epochs", "minutes", "stop", "processes")
"""Those that may be others whenever a run goes on, which is not noted as a change."""
ELSEWHERE = ("cache_gb", "workers")
"""Those of `data` that only say how images are read on a machine."""


def how_to_resume(folder: Path) -> str:
    """What to say behind the reason why a run ended, if something of it is saved."""
    saved = (folder / "checkpoints" / "last.ckpt").exists()
    return f" Go on from what is saved: deepcluster train --resume {shlex.quote(str(folder))}" if saved else ""


def read_config(folder: Path) -> dict[str, Any]:
    """A run's run.json; DeepClusterError if the folder holds no run, or one that is damaged or of another version."""
    file = folder / "run.json"
    if not file.is_file():
        if any((folder / name).is_dir() for name in BETWEEN):
            raise DeepClusterError(
                f"The run in {folder} was to be replaced, and that was cut short: `deepcluster train --resume {folder}`"
                " puts it back in its place."
            )
        what = "is not a run folder (it has no run.json)" if folder.is_dir() else "does not exist"
        raise DeepClusterError(f"{folder} {what}: give the folder that `deepcluster cluster` or `train` wrote.")
    advice = "restore it or train again."
    found = read_json(file, advice=advice)
    with judged(file, advice):
        _check_config(found)
    if found.get("format") != FORMAT:
        raise DeepClusterError(
            f"{folder} was written by another version of deepcluster: use that version for it, or train again."
        )
    return found


def _check_config(found: dict[str, Any]) -> None:
    """Raises DeepClusterError, ValueError: something that every run.json says is missing, or is of another kind."""
    wrong = [name for name, kind in NEEDED.items() if type(found.get(name)) is not kind]
    wrong += [name for name, kind in OPTIONAL.items() if name in found and type(found[name]) is not kind]
    wrong += [f"settings.{name}" for name in SETTINGS if name not in found.get("settings", ())]
    if wrong:
        raise ValueError(f"it does not say the run's {', '.join(wrong)}")
    if not 0 < found["images"] <= 1 << 40:
        raise ValueError(f"its images are {found['images']:,}")
    with suppress(UnknownSetting):  # of another version: refused by what needs all of them
        run, method = from_dict(found["settings"]), found["settings"]["method"]
        check_sizes(run)
        known = {field.name for field in fields(run.method)}  # type: ignore[arg-type]
        for name in {"name", *(known if not run.method.trains else known & {"k"})} - method.keys():
            raise ValueError(f"it does not say the run's settings.method.{name}")


def about(
    run: TrainRun,
    preset: str,
    source: ImageSource,
    pixels: Pixels,
    clusterer: object = None,
    group: ProcessGroup = SINGLE,
) -> dict[str, Any]:
    """run.json: everything resolved; a clusterer passed in Python by its repr."""
    fingerprint = source.fingerprint()
    packages = ("deepcluster", "torch", "torchvision", "lightning-fabric", "numpy")
    return {
        "format": FORMAT,
        "id": digest(fingerprint, type(clusterer).__name__, identity(run)),
        "preset": preset,
        "seed": run.seed,
        "processes": group.size,
        "data": absolute(source.name),
        "images": len(source),
        "bad_images": len(pixels.bad),
        "source_fingerprint": fingerprint,
        "settings": as_dict(resolved(run)),
        **({} if clusterer is None else {"clusterer": repr(clusterer)}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def identity(run: TrainRun) -> dict[str, Any]:
    """The settings by which runs of the same images differ."""
    settled = as_dict(resolved(run))
    found = {name: settled[name] for name in IDENTITY}
    return found | {"data": {name: value for name, value in settled["data"].items() if name not in ELSEWHERE}}


def of_run(folder: Path, run: TrainRun) -> dict[str, str]:
    """What a checkpoint says of the run that it belongs to; numbers as run.json gives them back, 0.0 for 0."""
    return {"id": run_id(folder), "settings": json.dumps(identity(from_dict(as_dict(run))), sort_keys=True)}


def same_run(config: Mapping[str, Any], run: TrainRun, saved: Mapping[str, Any] | None, file: Path) -> None:
    """Refuses to go on with other settings than a run's, but for the learning rate: a part of them would be taken from
    the checkpoint, and the rest would not be those that it was trained with until then. `config` is run.json, and
    `saved` the checkpoint `file`, where there is one; those of earlier versions do not say what they are of."""
    saved_run = (saved or {}).get("run", {"id": config.get("id", "")})
    if saved_run["id"] != config.get("id", saved_run["id"]):
        raise DeepClusterError(f"The checkpoint {file} belongs to another run: give one of this run.")
    before = parse_json(saved_run["settings"]) if "settings" in saved_run else config["settings"]
    changed = [name for name in differing(before, identity(run)) if name != "optimizer.lr"]
    if changed:
        raise DeepClusterError(
            f"The run of {file} was trained with other settings than are asked for now ({', '.join(changed)}): put"
            " them back in its run.json, or start another run in another folder."
        )


def resolved(run: TrainRun) -> TrainRun:
    """The settings as run.json holds them: files by paths that lead to them from another working directory."""
    if run.backbone.weights not in ("", PRETRAINED):
        return override(run, {"backbone.weights": str(file_of(run.backbone.weights).absolute())})
    return run


def note_finished(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Puts the hour at which the run was done with its last clustering into run.json, or into `config` in its place."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(folder / "run.json", (config or read_config(folder)) | {"finished": now})


def note_unfinished(folder: Path, run: TrainRun, group: ProcessGroup = SINGLE, epochs_done: float = 0.0) -> None:
    """Takes that hour away again: the run goes on, perhaps from an earlier checkpoint; and notes what of its settings
    is another than before, see `same_run`."""
    config = read_config(folder)
    before, settled = config["settings"], as_dict(resolved(run))
    now = config | {"settings": settled, "processes": group.size}
    for name in [each for each in differing(before, settled) if each not in LENGTH]:
        group_name, _, part = name.rpartition(".")
        was, now_is = (values[group_name][part] if group_name else values[part] for values in (before, settled))
        change = {"setting": name, "before": was, "after": now_is, "epochs_done": epochs_done}
        now["changes"] = [*now.get("changes", []), change]
    now.pop("finished", None)
    if now != config:
        write_json(folder / "run.json", now)


def absolute(name: str) -> str:
    """A source's name that still leads to it from another working directory."""
    path = Path(name)
    if ":" in name or name == "digits" or path.is_absolute() or not (path.exists() or "*" in name or "{" in name):
        return name
    return str(Path.cwd() / path)


def same_images(config: dict[str, Any], source: ImageSource, folder: Path) -> None:
    if source.fingerprint() != config["source_fingerprint"]:
        raise DeepClusterError(
            f"The images of {source.name} are not the ones {folder} was trained on (files were added, removed or"
            " changed): restore them, or start a new run with --out."
        )


def same_everywhere(group: ProcessGroup, value: str, what: str) -> None:
    """Refuses processes that have something else to tell of what they see, on all of them."""
    if len(set(group.gather_strings(value))) > 1:
        raise DeepClusterError(
            f"The processes see different {what}: give each machine the same files in the same place."
        )


def outside_images(folder: Path, source: ImageSource) -> None:
    """Refuses a run folder among the images: pictures that it will hold would count as images themselves, and the run
    could not be resumed, since its images would have changed."""
    images = Path(source.name).expanduser()
    if not (isinstance(source, Files) and images.is_dir()):
        return
    images, place = images.resolve(), folder.expanduser().resolve()
    if place.is_relative_to(images) and not any(is_hidden(part) for part in place.relative_to(images).parts):
        raise DeepClusterError(
            f"The run folder {folder} lies in the folder of the images, {source.name}, where its own pictures would"
            " count as images: choose an --out outside."
        )


def tell_bad(pixels: Pixels, screen: Screen) -> None:
    """How many files are skipped, and why the first of them is."""
    if pixels.bad:
        first = min(pixels.bad)
        screen.warn(
            f"{len(pixels.bad):,} of {counted(len(pixels), 'file')} cannot be decoded and"
            f" {'is skipped:' if len(pixels.bad) == 1 else 'are skipped, the first being'} {pixels.source.path(first)}"
            f" ({pixels.bad[first]})"
        )


def run_id(folder: Path) -> str:
    """What files of the run say that they belong to."""
    return str(read_config(folder).get("id", ""))


def write_snapshot(folder: Path, model: Model, clustering: Clustering) -> None:
    """model.safetensors, assignment.npy and distance.npy (N,) float32, of the same clustering."""
    owner = run_id(folder)
    model.save(folder / MODEL, owner)
    for name, values in (("distance", clustering.distance), ("assignment", clustering.assignment)):
        write_array(folder / f"{name}.npy", values, owner=owner)


def write_bad_images(folder: Path, pixels: Pixels) -> None:
    """bad_images.csv: index, path, reason; written even when there are none."""
    rows = [(index, pixels.source.path(index), reason) for index, reason in sorted(pixels.bad.items())]
    write_csv(folder / "bad_images.csv", [("index", "path", "reason"), *rows])
