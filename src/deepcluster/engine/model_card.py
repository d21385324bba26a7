"""A trained run as a folder for the Hugging Face hub: its network, its clusters, and a card that says what it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster.data.naming import printable, short_name
from deepcluster.engine.log import seconds_taken
from deepcluster.engine.model import CLUSTERS, PRETRAINED
from deepcluster.engine.scores import evaluations
from deepcluster.errors import counted
from deepcluster.io import new_folder, write_text
from deepcluster.methods.params import method_name
from deepcluster.models import hugging_face

if TYPE_CHECKING:
    from deepcluster.engine.run import Run


def write_hub_folder(run: Run, out: Path) -> Path:
    """Writes README.md and `CLUSTERS` to a new folder, and timm's form of the network where timm has one like it.

    Raises:
        DeepClusterError: the folder holds something, or cannot be written.
    """
    with new_folder(out) as folder:
        known = hugging_face.architecture(run.backbone) is not None
        if known:
            hugging_face.write_folder(run.backbone, folder)
        run.model.save(folder / CLUSTERS, owner=run.id)
        write_text(folder / "README.md", card(run, known))
    return out


def card(run: Run, known: bool) -> str:
    """The card of a run, in Markdown.

    Args:
        known: the network is there in timm's form, too.
    """
    config, settings = run.config, run.config["settings"]
    data, name = short_name(str(config["data"])), str(run.backbone.name)
    facts = [("network", f"{name}, for images of {run.image_size} px")]
    if run.params.trains:
        weights = settings["backbone"]["weights"] or "drawn at random"
        start = f"those published as {name}" if weights == PRETRAINED else short_name(weights)
        facts += [("method", f"{method_name(run.params)} (preset {config['preset']})"), ("initial weights", start)]
    else:
        facts.append(
            ("method", f"{settings['method']['algorithm']} of the features of {short_name(config['backbone'])}")
        )
    facts += [
        ("data", f"{data}, {counted(config['images'], 'image')}; no labels were used"),
        ("clusters", f"{len(run.centroids):,}"),
    ]
    if run.metrics:
        facts += [("epochs", f"{len(run.metrics):,}"), ("seconds", f"{seconds_taken(run.metrics):,.0f}")]
    facts.append(("versions", ", ".join(f"{part} {value}" for part, value in config["versions"].items())))
    scores = [
        (found.protocol, score, value, deviation)
        for found in evaluations(run.folder)
        for score, value, deviation in found.rows
    ]
    tags = "pipeline_tag: image-feature-extraction\ntags:\n- clustering\n- deepcluster"
    library, use = "deepcluster", ["deepcluster features FOLDER --data photos/ --out features.npy"]
    if run.clustered:
        use.insert(0, "deepcluster assign FOLDER --data photos/ --out clusters.csv")
    if known:
        library, use = "timm", [*use, "deepcluster cluster photos/ --out runs/photos --backbone FOLDER"]
    parts = [
        f"---\nlibrary_name: {library}\n{tags}\n---",
        f"# {name}: features and clusters of {data}",
        table(("", ""), facts),
    ]
    if scores:
        parts += ["## Scores\nIn per cent.", table(("protocol", "score", "value", "deviation"), scores)]
    parts.append(
        "## Use\nFOLDER is this one, or hf: and the name of this repository.\n```\n" + "\n".join(use) + "\n```"
    )
    if known:
        parts.append('```python\ntimm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:NAME\n```')
    return printable("\n\n".join(parts)) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
