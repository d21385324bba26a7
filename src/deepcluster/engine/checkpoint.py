"""One state, one file: everything that a resumed run needs to continue bit for bit.

Loaded with `weights_only`, so a file that wants to run code is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepcluster.errors import DeepClusterError, first_line
from deepcluster.io import keep_copy, write_torch
from deepcluster.methods.base import Method
from deepcluster.reading import load_torch
from deepcluster.seal import check_seal

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PARTS = ("method", "optimizers", "progress", "precision", "random")
"""What a checkpoint holds, each a dict."""

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The files of the newest state and of the one before it."""


def random_state() -> dict[str, Any]:
    """The state of every global generator: torch on the CPU and its GPU, NumPy, Python."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - other people's code draws from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "numpy": [str(name), torch.tensor(np.asarray(keys)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy(), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Whatever is drawn inside leaves every global generator as it was."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def save(
    file: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    progress: Any,
    fabric: Fabric,
    run: Mapping[str, str] | None = None,
) -> None:
    """Writes weights, per-image state, optimizers, progress (a dataclass), random generators and what it says of its
    run (`run_folder.of_run`) as one file, which is the same for any number of processes; the first one writes it. The
    file that was there becomes `PREVIOUS`. DeepClusterError where the loss is not finite: what was saved before is all
    that can be gone on from."""
    if not math.isfinite(progress.totals.get("loss", 0.0)):
        raise DeepClusterError(diverged(file, progress))
    state = {
        "method": method.full_state_dict(),
        "optimizers": {"backbone": optimizer.state_dict(), **method.full_optimizer_states()},
        "progress": dataclasses.asdict(progress),
        "precision": dict(fabric.strategy.precision.state_dict()),
        "random": random_state(),
        "run": dict(run or {"id": ""}),
    }
    with method.group.collective_section():  # nobody ends or continues while the first one writes
        if method.group.is_first:
            write_torch(file, state, previous=file.with_name(PREVIOUS))


def load(file: Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU; DeepClusterError for a file that is none, is damaged or wants to run code."""
    try:
        state = load_torch(file)
    except OSError as error:
        raise DeepClusterError(f"The checkpoint {file} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise DeepClusterError(
            f"{file} is not a checkpoint of deepcluster (or is damaged), so it was not loaded: {advice(file)}."
        ) from error
    if not isinstance(state, dict) or "method" not in state or "progress" not in state:
        raise DeepClusterError(f"{file} holds no deepcluster run: give the folder that `deepcluster train` wrote.")
    wrong = next((name for name in PARTS if not isinstance(state.get(name), dict)), None)
    run = state.get("run", {"id": ""})
    if not (isinstance(run, dict) and isinstance(run.get("id"), str) and all(type(x) is str for x in run.values())):
        wrong = wrong or "run"
    least = {"steps_per_epoch": 1, "batch_size": 1, "step": 0}
    found = {} if wrong else state["progress"]
    if not all(type(found.get(name)) is int and found[name] >= low for name, low in least.items()):
        wrong = wrong or "progress"
    if wrong:
        raise DeepClusterError(f"The checkpoint {file} has no {wrong} to go on from: {advice(file)}.")
    return state


def diverged(last: Path, progress: Any) -> str:
    """What to say of a loss that is not finite, and how to go on from before it."""
    what = f"The loss is no longer a number in epoch {max(progress.step - 1, 0) // progress.steps_per_epoch + 1}"
    if not last.exists():
        return f"{what}: start again with a lower --optimizer.lr, or with --optimizer.clip 1."
    run, before = shlex.quote(str(last.parent.parent)), last.with_name(PREVIOUS)
    start = f" --from {shlex.quote(str(before))}" if before.exists() else ""
    return (
        f"{what}: go on from before it with a lower rate by `deepcluster train --resume {run}{start} --optimizer.lr X`."
    )


def go_back(start: Path, folder: Path) -> None:
    """Makes the checkpoint `start` of the run in `folder` its last one."""
    last = folder / "checkpoints" / LAST
    if not (last.exists() and os.path.samefile(start, last)):
        keep_copy(start, last)


def advice(file: Path) -> str:
    """How to go on without the checkpoint `file`: from the newest other one beside it that is whole."""
    folder = file.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    others = sorted(
        (other for other in folder.glob("*.ckpt") if other.name != file.name and not os.path.samefile(other, file)),
        key=lambda other: (other.stat().st_mtime_ns, other.name == PREVIOUS),
        reverse=True,
    )
    for other in others:
        with contextlib.suppress(OSError, ValueError):
            check_seal(other)
            return (
                f"go on from the one before it by `deepcluster train --resume {shlex.quote(str(run))} --from"
                f" {shlex.quote(str(other))}`"
            )
    return "there is no other in its folder to resume from, so train again"


def restore(state: Mapping[str, Any], method: Method, file: Path) -> None:
    """Puts weights and per-image state back; optimizers follow once the method has its own again. DeepClusterError for
    a checkpoint of another architecture or number of images, and for weights that are not finite."""
    try:
        method.load_state_dict(state["method"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise DeepClusterError(
            f"The checkpoint {file} is of another architecture or data set than this run ({first_line(error)}):"
            " resume with the folder it was written in."
        ) from error
    for name, value in method.named_parameters():
        if not value.isfinite().all():
            raise DeepClusterError(f"The checkpoint {file} has weights that are not finite, in {name}: {advice(file)}.")


def resume(file: Path, method: Method, optimizer: torch.optim.Optimizer, precision: Any) -> dict[str, Any]:
    """Restores everything that a checkpoint holds, and returns how far the run had come: what `save` was given."""
    saved = load(file)
    restore(saved, method, file)
    try:
        for name, each in {"backbone": optimizer, **method.optimizers()}.items():
            rates = [group["base_lr"] for group in each.param_groups]  # as the settings say, perhaps others
            each.load_state_dict(saved["optimizers"][name])
            for group, rate in zip(each.param_groups, rates, strict=True):
                group["base_lr"] = rate
        precision.load_state_dict(saved["precision"])
        set_random_state(saved["random"])
    except Exception as error:  # torch believes what it loads, and fails at it in many ways
        raise DeepClusterError(
            f"The checkpoint {file} cannot be gone on from ({first_line(error)}): {advice(file)}."
        ) from error
    return dict(saved["progress"])
