"""The paper's figure 2 from runs of your own: (a) agreement with the labels, (b) stability, (c) the choice of k.

    python examples/reproduce/figure2.py runs/a runs/b --sweep runs/ks --out runs/figure2

(a) is NMI(t, labels) of each run by epoch, where its images have labels (methods never see them), (b) is
NMI(t-1, t) of its clusters, and (c) is what `sweep.py --setting method.k` left; a panel without data says so.
The sentence says whether each curve has leveled off: the clusters are then as stable as they become.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from common import Row, Study, draw_lines, run_script, with_options
from sweep import MEASURES, draw_sweep
from tyro.conf import Positional, arg

from deepcluster.engine.run import load_run
from deepcluster.errors import DeepClusterError
from deepcluster.visualize import style
from deepcluster.visualize.compare import short_names
from deepcluster.visualize.history import curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = (
    ("a", "Agreement with labels", "nmi_labels", "NMI(t, labels)"),
    ("b", "Stability", "nmi_previous", "NMI(t-1, t)"),
)
LEVEL = 0.01
"""A curve has leveled off where its last quarter differs by less from the quarter before."""


def figure2(
    runs: Positional[tuple[Path, ...]] = (),
    sweep: Path | None = None,
    out: Path | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Figure 2 of arXiv 1807.05520 as one picture.

    Args:
        runs: run folders, of panels a and b.
        sweep: folder that sweep.py wrote for method.k, of panel c.
        out: folder to write; none = studies/ in the first run's folder.
        as_json: print one JSON object.
    """
    names = short_names([str(folder) for folder in runs])
    metrics = {name: load_run(folder).metrics for name, folder in zip(names, runs, strict=True)}
    rows: list[Row] = []
    sentences: list[str] = []
    page = style.figure(14.7, 3.6)
    panels = page.subplots(1, 3)
    for axes, (letter, title, key, unit) in zip(panels, CURVES, strict=False):
        lines = {name: curve(each, key) for name, each in metrics.items()}
        lines = {name: (x, y) for name, (x, y) in lines.items() if len(x)}
        draw_lines(axes, lines, f"({letter}) {title}", unit)
        axes.set_ylim(0, 1)
        for name, (x, y) in lines.items():
            rows += [{"panel": letter, "run": name, "epoch": int(e), key: float(v)} for e, v in zip(x, y, strict=True)]
            sentences.append(f"{name}: {unit} {ending(x, y)}.")
        if not lines:
            _missing(axes, f"no run was given that has {unit}")
    title = "(c) Choice of k"
    if sweep is None:
        style.quiet(panels[2], title, "", "")
        _missing(panels[2], "no sweep of k was given")
    else:
        found = read_sweep(sweep)
        rows += [{"panel": "c", "k": row["k"], "score": row["score"]} for row in found["rows"]]
        about = found["settings"]
        draw_sweep(panels[2], found["rows"], "k", MEASURES[about["score"]], about["classes"])
        panels[2].set_title(f"{title}: {panels[2].get_title(loc='left')}", loc="left", fontsize=11, fontweight="bold")
        sentences.append(found["sentence"])
    if not rows or (not runs and sweep is None):
        raise DeepClusterError(
            "There is nothing to draw: name runs of two epochs or more, or give --sweep DIR that sweep.py wrote."
        )
    out = out or (runs[0] / "studies" if runs else sweep) or Path()
    settings = {"runs": [str(folder) for folder in runs], "sweep": str(sweep) if sweep else None, "level": LEVEL}
    Study("figure2", " ".join(sentences), settings, rows, page).report(out, as_json)


def ending(epochs: np.ndarray, values: np.ndarray) -> str:
    """How a curve of (T,) values ends: its last quarter, at least two values, against the quarter before."""
    went = f"went from {values[0]:.3f} to {values[-1]:.3f}"
    if len(values) < 4:
        return f"{went}; {len(values)} values are too few to say how it continues"
    part = max(2, len(values) // 4)
    last, before = float(values[-part:].mean()), float(values[-2 * part : -part].mean())
    if abs(last - before) < LEVEL:
        reached = epochs[np.argmax(values >= last - LEVEL)]
        return f"{went} and has leveled off at {last:.3f}, reached in epoch {reached:g}"
    word = "rising" if last > before else "falling"
    return f"{went} and is still {word}, by {abs(last - before):.3f} from the {part} values before to the last {part}"


def read_sweep(folder: Path) -> dict[str, Any]:
    """The k.json of a sweep.

    Raises:
        DeepClusterError: there is none, or it is damaged.
    """
    file = folder / "k.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = found["sentence"], MEASURES[found["settings"]["score"]], found["settings"]["classes"]
        _ = [(row["k"], row["score"]) for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeepClusterError(
            f"{file} is missing or damaged: give the folder that `sweep.py --setting method.k --out` wrote."
        ) from error
    return found


def _missing(axes: Axes, sentence: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", color=style.QUIET)


if __name__ == "__main__":
    run_script(with_options(figure2))
