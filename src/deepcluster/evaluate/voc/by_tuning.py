"""Classifying a VOC set by fine-tuning a network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.data.cache import Pixels, load_pixels
from deepcluster.engine.checkpoint import undisturbed
from deepcluster.engine.subject import Subject
from deepcluster.evaluate.voc.crops import passes, summed_logits
from deepcluster.evaluate.voc.dataset import VOC
from deepcluster.evaluate.voc.finetune import BUILD, finetune, recipe_of
from deepcluster.evaluate.voc.transfer import HIDDEN, Transfer, save_transfer
from deepcluster.evaluate.voc.work import PROTOCOL, Work
from deepcluster.io import write_json
from deepcluster.random import seed_of


@dataclass(frozen=True)
class FineTuning:
    """New fully connected layers, the rest frozen ("fc6-8") or trained along ("all").

    Attributes:
        mode: see above.
        recipe: "deepcluster" or "deepercluster".
        changes: values of `finetune.Recipe` in place of the recipe's, such as iterations.
        crops: of the test, see `crops.summed_logits`.
        train_batchnorm: with fc6-8, train the scales and shifts of the frozen part's batch-norm.
        hidden: with fc6-8, width of the new layers behind a network that has no fc6 and fc7; None = 4096.
    """

    mode: str = "fc6-8"
    recipe: str = "deepcluster"
    changes: tuple[tuple[str, Any], ...] = ()
    crops: str = "random"
    train_batchnorm: bool = False
    hidden: int | None = None


def by_tuning(
    work: Work, how: FineTuning, seeds: Sequence[int], check: Callable[[int], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One draw for each seed, and settings; leaves the first seed's network beside the results."""
    subject, backbone = work.subject, work.subject.backbone
    recipe = recipe_of(how.recipe, how.mode, **dict(how.changes))
    views = recipe.views(subject.image_size, backbone.mean, backbone.std)
    # the smallest crop that is drawn still has as many pixels as the network sees
    short_side = int(np.ceil(subject.image_size / np.sqrt(recipe.crop_scale[0])))
    layers: dict[str, Any] = {"train_batchnorm": how.train_batchnorm, "draw_top": recipe.draw_top}
    layers["hidden"] = how.hidden or HIDDEN
    about = {
        "mode": how.mode,
        "subject": subject.name,
        "classes": list(work.train.classes),
        "backbone": backbone.config,
        "layers": layers,
        "views": asdict(views),
        "short_side": short_side,
        "crops": how.crops,
    }
    pixels, held = (_kept(work, voc, short_side) for voc in (work.train, work.held))
    state = subject.results / f"{PROTOCOL}.state"
    finished = subject.results / f"{PROTOCOL}.finished.json"
    done = _read_finished(finished)
    draws = []
    for seed in seeds:
        key = work.key(about, asdict(recipe), seed)
        if key not in done:
            network = _network(subject, about, seed)
            loss = finetune(
                network,
                pixels,
                work.labels,
                recipe,
                views,
                seed=seed,
                device=subject.device,
                state=state,
                key=key,
                screen=work.screen,
                check=check,
            )
            with work.screen.bar("test", passes(how.crops) * len(held)) as advance:
                logits = summed_logits(
                    network,
                    held,
                    views,
                    len(work.train.classes),
                    kind=how.crops,
                    seed=seed,
                    device=subject.device,
                    check=advance,
                )
            good = np.flatnonzero(np.isfinite(logits).all(axis=1))
            done[key] = {"seed": seed, **work.scores(logits[good], good), "loss": loss}
            if seed == seeds[0]:
                save_transfer(network, subject.results / f"{PROTOCOL}.safetensors", about)
            write_json(finished, {name: _jsonable(draw) for name, draw in done.items()})
            state.unlink(missing_ok=True)
        draws.append({name: float("nan") if value is None else value for name, value in done[key].items()})
    finished.unlink(missing_ok=True)
    kind = "what is kept is frozen" if how.mode == "fc6-8" else "all is trained"
    batchnorm = ", but its batch-norm scales and shifts" if how.train_batchnorm else ""
    settings = {
        "mode": how.mode,
        "trained": f"new fully connected layers, {kind}{batchnorm}; batch-norm keeps its statistics",
        "recipe": how.recipe,
        **asdict(recipe),
        "crops": how.crops,
        "tested": f"sum of the logits of {passes(how.crops)} {how.crops} crop(s)",
        "image_size": subject.image_size,
        "images_scored": len(held.good),
    }
    return draws, settings


def _kept(work: Work, voc: VOC, short_side: int) -> Pixels:
    subject = work.subject
    with work.screen.bar(f"images of {voc.split}", len(voc)) as bar:
        return load_pixels(
            voc.images,
            short_side=short_side,
            cache_gb=subject.cache_gb,
            workers=subject.workers,
            progress=lambda count, total: bar.to(count),
        )


def _network(subject: Subject, about: dict[str, Any], seed: int) -> Transfer:
    """The subject's backbone, copied, with new layers drawn from the seed."""
    backbone = copy.deepcopy(subject.backbone).cpu()
    with undisturbed():
        torch.manual_seed(seed_of(seed, BUILD))
        return Transfer(backbone, len(about["classes"]), about["mode"], **about["layers"])


def _read_finished(file: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _jsonable(draw: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in draw.items()
    }
