"""Small whole files of every kind that is read, but for pictures."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from mutate import Kind
from pictures import picture, saved
from pyarrow import parquet

from deepcluster.config import from_dict, override
from deepcluster.data.indexing import index_shards, named
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource
from deepcluster.digest import digest
from deepcluster.distributed import SINGLE
from deepcluster.engine import checkpoint, train
from deepcluster.engine.build import build_parts, check, views_of
from deepcluster.engine.fabric import make_fabric
from deepcluster.engine.log import Screen
from deepcluster.engine.model import Model
from deepcluster.engine.run import load_run
from deepcluster.engine.run_folder import read_config
from deepcluster.errors import BadImage, DeepClusterWarning, explained
from deepcluster.evaluate.doctor.diagnosis import diagnose
from deepcluster.evaluate.result import Result
from deepcluster.evaluate.voc.annotation import parse_annotation
from deepcluster.explore.groups import Groups
from deepcluster.explore.journal import Journal
from deepcluster.features.table import open_table, write_parts
from deepcluster.io import write_array, write_json
from deepcluster.models.export import export_backbone, load_backbone
from deepcluster.models.hugging_face import load_folder, write_folder
from deepcluster.models.torch_files import read_torch
from deepcluster.models.zoo import build_backbone
from deepcluster.presets import find_preset
from deepcluster.reading import read_npz
from deepcluster.resume import ResumeFile
from deepcluster.seal import json_seal, put_seal
from deepcluster.visualize.report import write_report


def resealed(data: bytes) -> bytes:
    """With a checksum that fits, where there is one."""
    stream = io.BytesIO(data)
    try:
        put_seal(stream)
    except ValueError:
        return data
    return stream.getvalue()


def resealed_json(data: bytes) -> bytes:
    """The same of a JSON object."""
    try:
        found = json.loads(data)
        found.pop("crc32", None)
        return json.dumps(found | {"crc32": json_seal(found)}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data


def _images(source: ImageSource) -> dict[str, Any]:
    """What `deepcluster train` sees of a source: each image by its path, or why it cannot be shown."""
    found: dict[str, Any] = {}
    source.fingerprint()
    for index in range(min(len(source), 50)):
        path = source.path(index)
        path += " again" * (path in found)
        try:
            found[path] = digest(source.read(index, 16))
        except BadImage as error:
            assert len(str(error).splitlines()) == 1
            found[path] = "bad"
    return found


def _opened(place: Path) -> dict[str, Any]:
    return _images(open_images(str(place)))


def _table(place: Path) -> Any:
    table, about = open_table(place)
    return np.asarray(table[:]), {
        name: about.get(name) for name in ("data", "rows", "width", "bad", "source_fingerprint")
    }


def _features(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return index, np.outer(index, np.ones(4, np.float32))


def _photos() -> dict[str, bytes]:
    return {f"photos/{name}/{k}.png": saved(picture("RGB", (16 + k, 16)), "PNG") for name in "ab" for k in range(3)}


def files(folder: Path) -> list[Kind]:
    """Archives, lists, tables, and all that a run consists of, made in `folder`."""
    photos = _photos()
    for name, content in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = [*archives(), *_lists(photos), *_parquet(photos), *_tables(folder), *_state(folder)]
    run = folder / "run"
    values = {"epochs": 2, "k": 3, "whiten": 4, "batch_size": 4, "image_size": 12, "keep_every": 1}
    settings = override(find_preset("tiny-deepcluster").run, values)
    train.train(settings, folder / "photos", run, screen=Screen(quiet=True))
    return [*found, *_run(run)]


def _labelled(place: Path) -> dict[str, Any]:
    source = open_images(str(place))
    labels = None if source.labels is None else source.labels.tolist()
    return _images(source) | {"labels": (labels, source.classes)}


def archives() -> Iterator[Kind]:
    """Tar and zip files of six pictures, also with a class beside each."""
    photos = _photos()
    long = {name.replace("1.png", f"{'ü' * 60}.png"): content for name, content in photos.items()}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        yield Kind(f"form{form}.tar", _tar(long, form), _opened, listed=True, end=bytes(1024))
    yield Kind("twice.tar", 2 * _tar(long, tarfile.GNU_FORMAT), _opened, listed=True, end=bytes(1024))
    for name, packed in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        yield Kind(f"{name}.zip", _zip(photos, packed), _opened, listed=True)
    beside = {path.replace(".png", ".cls"): path.split("/")[1].encode() for path in photos}
    for writer, ending in ((_tar, ".tar"), (_zip, ".zip")):
        yield Kind(f"classes{ending}", writer(photos | beside), _labelled, listed=True, end=bytes(1024))


def _tar(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _zip(members: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _lists(photos: dict[str, bytes]) -> Iterator[Kind]:
    yield Kind("list.txt", "".join(f"{path}\n" for path in photos).encode(), _opened)
    rows = "".join(f'"{path}",{path.split("/")[1]}\n' for path in photos)
    yield Kind("list.csv", f"path,label\n{rows}".encode(), _opened)
    yield Kind("shards.txt", b"form1.tar\n# more\nstored.zip\n", lambda place: named([str(place)]))


def _parquet(photos: dict[str, bytes]) -> Iterator[Kind]:
    images = [{"bytes": content, "path": path} for path, content in photos.items()]
    for packed in ("snappy", "none"):
        stream = io.BytesIO()
        table = pyarrow.table({"image": images, "label": [k % 2 for k in range(len(images))]})
        parquet.write_table(table, stream, row_group_size=4, compression=packed)
        yield Kind(f"{packed}.parquet", stream.getvalue(), _opened)


def _tables(folder: Path) -> Iterator[Kind]:
    draw = np.random.default_rng(0)
    stream = io.BytesIO()
    np.save(stream, draw.integers(0, 255, (5, 8, 8, 3), np.uint8))
    yield Kind("images.npy", stream.getvalue(), _opened)
    rows = draw.normal(size=(9, 4)).astype(np.float32)
    table = folder / "table.npy"
    write_array(table, rows)
    about = {"data": "digits", "rows": 9, "width": 4, "bad": [2], "source_fingerprint": "0"}
    write_json(table.with_suffix(".json"), about, sealed=True)
    yield Kind("table.npy", table.read_bytes(), _table, resealed, sealed=True)
    yield Kind("table.json", (folder / "table.json").read_bytes(), lambda place: _table(table), resealed_json, True)
    parts = folder / "parts"
    write_parts(lambda index: (index, np.outer(index, np.ones(4, np.float32))), 300, parts, {"tap": None}, parts=2)
    extractor = partial(write_parts, _features, 300, parts, {"tap": None}, parts=2)
    extractor()
    for part in sorted(parts.iterdir()):
        mend = resealed if part.suffix == ".npy" else resealed_json
        yield Kind(f"parts/{part.name}", part.read_bytes(), lambda place: _table(parts), mend, True)
        if part.name != "table.json":  # what is damaged is made again

            def again(place: Path) -> Any:
                extractor()
                return _table(parts)

            yield Kind(f"parts/./{part.name}", part.read_bytes(), again, sealed=True)
    stream = io.BytesIO()
    np.savez(stream, a=rows, b=np.arange(5))
    yield Kind("arrays.npz", stream.getvalue(), lambda place: read_npz(place, advice="write it again."))


def _state(folder: Path) -> Iterator[Kind]:
    archive = folder / "indexed.tar"
    archive.write_bytes(next(archives()).whole)
    manifest = folder / "manifest.json"
    index_shards([str(archive)], manifest, workers=1)
    for file in sorted(folder.glob("manifest*")):
        yield Kind(file.name, file.read_bytes(), lambda place: _opened(manifest), sealed=file.suffix == ".npy")
    (kept,) = folder.rglob("shard-index/*.npz")  # its members, in the cache
    yield Kind(str(kept.relative_to(folder)), kept.read_bytes(), lambda place: _opened(archive), sealed=True)

    groups = np.arange(12) % 4
    journal = Journal(folder / "edits.jsonl", Groups(groups))
    journal.do({"op": "rename", "cluster": 2, "name": "x"})
    journal.do({"op": "merge", "clusters": [0, 1], "into": 1})
    journal.do({"op": "hide", "clusters": [3], "hidden": True})
    journal.step("undo")

    def edits(place: Path) -> Any:
        found = Journal(place, Groups(groups))
        if found.notice:
            warnings.warn(found.notice, DeepClusterWarning, stacklevel=2)
        return found.groups.group, found.can_undo, found.can_redo, found.groups.names

    yield Kind("edits.jsonl", journal.file.read_bytes(), edits)

    work = ResumeFile(folder / "work.state", 1)
    work.run("one", lambda: {"x": torch.arange(4)})
    yield Kind("work.state", work.file.read_bytes(), _work, resealed, sealed=True)
    weights = {"epoch": 3, "arch": "alexnet", "state_dict": {"a.weight": torch.randn(3, 4), "b": torch.arange(5)}}
    for old in (True, False):
        stream = io.BytesIO()
        torch.save(weights, stream, _use_new_zipfile_serialization=not old)
        yield Kind(f"{'old' * old}weights.pth", stream.getvalue(), read_torch)
    timm = folder / "timm"
    write_folder(build_backbone("timm:test_resnet", image_size=32), timm)
    yield Kind("timm/config.json", (timm / "config.json").read_bytes(), lambda place: digest(load_folder(timm)))
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>12</ymax></bndbox>"
    size = "<size><width>20</width><height>30</height><depth>3</depth></size>"
    xml = f"<annotation>{size}<object><name>cat</name><difficult>0</difficult>{box}</object></annotation>"
    yield Kind("a.xml", xml.encode(), lambda place: vars(parse_annotation(place.read_bytes())))


def _work(place: Path) -> Any:
    found = ResumeFile(place, 1)
    return found.run("one", lambda: None)


def _run(run: Path) -> Iterator[Kind]:
    """Each file of a run folder, read as the commands that open one do."""
    fabric = make_fabric(from_dict(read_config(run)["settings"]))

    def resumed(place: Path) -> Any:
        settings, state = from_dict(read_config(run)["settings"]), checkpoint.load(place)
        parts = build_parts(settings, 6, fabric, SINGLE)
        checkpoint.resume(place, parts.method, parts.optimizer, fabric.strategy.precision)
        opened = load_run(run, device="cpu")
        return digest({k: v for k, v in state.items() if k != "progress"}), [digest(part) for part in opened.head or ()]

    def begun(place: Path) -> Any:
        config = read_config(run)
        settings = from_dict(config["settings"])
        check(settings)
        try:
            build_parts(settings, config["images"], fabric, SINGLE)
        except RuntimeError as error:  # as the commands say it
            raise explained(error) or error from None
        views_of(settings, build_parts(settings, 6, fabric, SINGLE).method.backbone)
        return opened(place), _images(open_images(config["data"]))

    def opened(place: Path) -> Any:
        found = load_run(run, device="cpu")
        page = write_report(found, clusters=2, images=2)
        page.unlink()
        diagnose(found, sample=4, screen=Screen(quiet=True)).json()
        return found.config, found.params, found.metrics, found.assignment, found.distance, found.bad_images()

    def modelled(place: Path) -> Any:
        model = Model.load(place)
        return digest(model.backbone), model.centroids, [step.state_dict() for step in model.embedding]

    (run / "evaluation").mkdir(exist_ok=True)
    Result("knn", {"k": 20, "images": "all of them"}, {"knn20_top1": 0.5, "knn20_top1_std": 0.1}).save(
        run / "evaluation"
    )
    backbone = export_backbone(load_run(run).backbone, "safetensors", run / "backbone.safetensors")
    last = (run / "checkpoints/last.ckpt").read_bytes()
    yield Kind("run/checkpoints/last.ckpt", last, resumed, resealed, sealed=True, slow=True)
    yield Kind("run/model.safetensors", (run / "model.safetensors").read_bytes(), modelled, resealed, sealed=True)
    yield Kind(
        "run/backbone.safetensors", backbone.read_bytes(), lambda place: digest(load_backbone(place)), resealed, True
    )
    yield Kind("run/run.json", (run / "run.json").read_bytes(), begun, slow=True)
    for name in ("metrics.jsonl", "bad_images.csv", "evaluation/knn.json"):
        yield Kind(f"run/{name}", (run / name).read_bytes(), opened, slow=True)
    for name in ("assignment.npy", "distance.npy"):
        yield Kind(f"run/{name}", (run / name).read_bytes(), opened, resealed, sealed=True, slow=True)
