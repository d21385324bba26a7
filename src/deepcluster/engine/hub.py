"""Runs on the Hugging Face hub, there and back: a folder with network, clusters, and a card that says what it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from deepcluster.data.naming import printable, short_name
from deepcluster.engine.log import seconds_taken
from deepcluster.engine.model import CLUSTERS, PRETRAINED
from deepcluster.engine.run import Run, load_subject
from deepcluster.engine.scores import evaluations
from deepcluster.engine.subject import Subject
from deepcluster.errors import DeepClusterError, counted, first_line
from deepcluster.io import new_folder, write_text
from deepcluster.methods.params import method_name
from deepcluster.models import hugging_face
from deepcluster.models.hugging_face import HUB


def push(run: Run, repo: str, private: bool, token: str | None, message: str) -> str:
    """See `Run.push_to_hub`."""
    from huggingface_hub import HfApi

    with TemporaryDirectory() as made:
        folder = write_hub_folder(run, Path(made) / "run")
        try:
            api = HfApi(token=token)
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # of the connection, the account, the name
            raise DeepClusterError(
                f"The run could not be put on the hub as {repo} ({first_line(error)}): `hf auth login` tells the hub"
                " who you are, and Run.save_pretrained writes the same to a folder."
            ) from None
    return str(address)


def from_pretrained(name: str | Path, *, revision: str | None = None, device: str = "auto") -> Subject:
    """Opens what `Run.save_pretrained` wrote or `Run.push_to_hub` put on the hub: `assign`, `features`, `centroids`.

    Args:
        name: the folder, or a repository such as "we/photos", which is downloaded once. A folder or repository of timm
            will do too: it has features, and no clusters.
        revision: branch, tag or commit of a repository; None = main.
        device: where features are computed: auto, cpu, cuda, mps.

    Raises:
        DeepClusterError: there is no such folder or repository, or what it holds is something else or damaged.

    Examples:
        >>> import deepcluster as dc
        >>> dc.from_pretrained("we/photos").assign("new_photos/").save("clusters.csv")  # doctest: +SKIP
    """
    named = str(name)
    if named.startswith(HUB) or Path(name).exists():
        if revision is not None:
            raise DeepClusterError(f"A revision is of a repository's plain name, and {name} is none: leave it out.")
        return load_subject(name, device=device)
    return load_subject(f"{HUB}{named}" + (f"?revision={revision}" if revision else ""), device=device)


def write_hub_folder(run: Run, out: Path) -> Path:
    """Writes README.md and `CLUSTERS` to a new folder, and timm's form of the network where timm has one like it;
    DeepClusterError where the folder holds something, or cannot be written."""
    with new_folder(out) as folder:
        known = hugging_face.architecture(run.backbone) is not None
        if known:
            hugging_face.write_folder(run.backbone, folder)
        run.model.save(folder / CLUSTERS, owner=run.id)
        write_text(folder / "README.md", card(run, known))
    return out


def card(run: Run, known: bool) -> str:
    """The card of a run, in Markdown, which tells whether the network is there in timm's form, too."""
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
