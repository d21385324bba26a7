"""Several runs under the same protocols: clusters, nearest neighbors, linear by layer, few labels; one table.

    python benchmarks/evaluation.py --data cifar10/train-000.tar --test cifar10/test.tar --out runs/table \\
        rotation=runs/methods/rotations-only deepcluster=runs/methods/deepcluster [...] [--epochs 5]

The network of the first run is also scored as it was before training (`random`). Every score is on the test images;
nothing was chosen on them. Results that are there already are not made again. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from deepcluster.engine.log import Screen
from deepcluster.engine.run import load_subject
from deepcluster.engine.subject import Subject
from deepcluster.evaluate.clusters import clusters
from deepcluster.evaluate.knn import knn
from deepcluster.evaluate.linear.linear import linear
from deepcluster.evaluate.linear.low_shot import low_shot
from deepcluster.evaluate.result import Result

Score = Callable[[Subject, Screen], Result]


def protocols(
    data: str, test: str, epochs: int, shots: tuple[int, ...], neighbors: tuple[int, ...]
) -> dict[str, Score]:
    """Name -> what scores a network."""
    return {
        "clusters": lambda subject, screen: clusters(subject, data, test, k="classes", draws=3, screen=screen),
        "knn": lambda subject, screen: knn(subject, data, test, k=neighbors, screen=screen),
        "linear": lambda subject, screen: linear(subject, data, test, screen=screen),
        "layers": lambda subject, screen: linear(
            subject, data, test, taps=("all",), recipe="quick", epochs=epochs, screen=screen
        ),
        "low-shot": lambda subject, screen: low_shot(subject, data, test, shots=shots, screen=screen),
    }


def scores(subject: Subject, work: dict[str, Score], folder: Path) -> dict[str, float]:
    """All scores of one network; each protocol's own JSON stays in `folder`."""
    found: dict[str, float] = {}
    for name, score in work.items():
        subject.results = folder / name
        made = next(iter(subject.results.glob("*.json")), None)
        if made is None:
            made = score(subject, Screen(stderr=True)).save(subject.results)
        found |= json.loads(made.read_text())["scores"]
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown, per cent, the best of each column in bold; deviations are left to the JSON."""
    columns = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if "_std" not in name]
    columns = [name for name in columns if "top5" not in name and sum(name in row for row in rows.values()) > 1]
    best = {name: max(row.get(name, 0.0) for row in rows.values()) for name in columns}
    lines = ["| run | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for run, row in rows.items():
        cells = [f"{100 * row[name]:.1f}" if name in row else "-" for name in columns]
        marked = [
            f"**{cell}**" if row.get(name) == best[name] else cell for name, cell in zip(columns, cells, strict=True)
        ]
        lines.append(f"| {run} | " + " | ".join(marked) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5, help="of the probes of all layers")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16, 64], help="labeled images of each class")
    parser.add_argument("--neighbors", type=int, nargs="+", default=[1, 20, 200])
    chosen = parser.parse_args()
    named = dict(run.split("=", 1) for run in chosen.runs)
    work = protocols(chosen.data, chosen.test, chosen.epochs, tuple(chosen.shots), tuple(chosen.neighbors))
    first = next(iter(named.values()))
    rows = {"random": scores(load_subject(first, untrained=True), work, chosen.out / "random")}
    for name, folder in named.items():
        rows[name] = scores(load_subject(folder), work, chosen.out / name)
        print(table(rows), flush=True)
    (chosen.out / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
