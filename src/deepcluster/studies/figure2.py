"""The paper's figure 2 from our own runs: agreement with labels, stability, and the choice of k, side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.engine.run import Run
from deepcluster.studies.curves import epochs_and_values
from deepcluster.studies.series import NAMES
from deepcluster.studies.study import Row, Study, read_study
from deepcluster.visualize.studies import draw_curves, draw_series, three_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure2(run: Run | None, k_study: Path | None) -> tuple[Study, Figure]:
    """Figure 2 (a, b, c) of arXiv 1807.05520; a panel without data says so.

    Args:
        run: of panels a, NMI(t,labels), and b, NMI(t-1,t).
        k_study: folder of `deepcluster study k`, of panel c.

    Raises:
        DeepClusterError: a folder that is no run or no study.
    """
    rows: list[Row] = []
    panels: list[tuple[str, str, Callable[[Axes], None] | None]] = []
    curves = (("a", "Agreement with labels", "nmi_labels", "NMI(t, labels)"),
              ("b", "Stability", "nmi_previous", "NMI(t-1, t)"))  # fmt: skip
    there = []
    for letter, what, key, unit in curves:
        title = f"({letter}) {what}"
        x, y = epochs_and_values(run.metrics if run else [], key)
        rows += [{"panel": letter, "epoch": int(e), key: float(v)} for e, v in zip(x, y, strict=True)]
        draw = functools.partial(draw_curves, lines={unit: (x, y)}, title=title, unit=unit) if len(x) else None
        missing = "no run was given" if run is None else f"{run.folder.name} has no {unit}"
        panels.append((title, missing, draw))
        there += [letter] if draw else []
    found = read_study(k_study, "k") if k_study else None
    title = "(c) Choice of k"
    if found:
        rows += [{"panel": "c", "k": row["k"], "score": row["score"]} for row in found["rows"]]
        about = found["settings"]
        drawn = functools.partial(
            draw_series,
            rows=found["rows"],
            setting="k",
            title=title,
            unit=f"{NAMES[about['score']]} (%)",
            classes=about["classes"],
        )
        there.append("c")
        panels.append((title, "", drawn))
    else:
        panels.append((title, "no study of k was given", None))
    said = f"Panels {', '.join(there)} are drawn from our own runs" if there else "No panel has data"
    without = [letter for letter in "abc" if letter not in there]
    said += f"; {' and '.join(without)} had no data." if without and there else "."
    settings = {"run": str(run.folder) if run else None, "k_study": str(k_study) if k_study else None}
    return Study("figure2", said, settings, rows), three_panels(panels)
