"""Files are there whole or not at all, whatever stops their writing; and one changed bit is noticed by who reads."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster import io
from deepcluster.engine.assignment import Assignment
from deepcluster.errors import DeepClusterError
from deepcluster.features.table import open_table, write_table
from deepcluster.models.export import export_backbone
from deepcluster.models.released import save_released
from deepcluster.models.zoo import build_backbone
from deepcluster.reading import read_json, read_npy, read_tensors
from deepcluster.resume import ResumeFile
from deepcluster.seal import check_seal

resource = pytest.importorskip("resource")

BIG = np.zeros((1000, 100), np.float32)
RESULT = Assignment(["a/b.jpg"] * 20_000, np.zeros(20_000, np.int64), np.random.default_rng(0).random(20_000))


def features(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return asked, np.ones((len(asked), 100), np.float32)


def saved(file: Path) -> None:
    ResumeFile(file, 1).save({"a": torch.zeros(100_000)})


def alexnet(file: Path) -> None:
    save_released(build_backbone("alexnet", image_size=224), file, k=2)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.bin": lambda file: io.write_bytes(file, bytes(10**5)),
    "a.txt": lambda file: io.write_text(file, "a" * 10**5),
    "a.json": lambda file: io.write_json(file, list(range(10**5))),
    "a.csv": lambda file: RESULT.save(file),
    "a.parquet": lambda file: RESULT.save(file),
    "a.npy": lambda file: io.write_array(file, BIG),
    "blocks.npy": lambda file: io.write_array(file, iter([BIG, BIG]), 2000),
    "table.npy": lambda file: write_table(features, np.arange(1000), file),
    "scratch.npy": lambda file: io.scratch_table(file, 1000, 100),
    "a.ckpt": lambda file: io.write_torch(file, {"a": torch.zeros(100_000)}),
    "a.safetensors": lambda file: io.write_safetensors(file, {"a": torch.zeros(100_000)}, {}),
    "backbone.safetensors": lambda file: export_backbone(build_backbone("convnet", image_size=8), "safetensors", file),
    "a.state": saved,
    "released.pth.tar": alexnet,
}


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """As under `ulimit -f`; Python has SIGXFSZ ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_on_sizes_is_one_sentence_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    kept = name not in ("scratch.npy", "a.state")  # the one replaces what it finds, the other reads it
    if kept:
        file.write_bytes(b"old")
    with files_of_at_most(20_000), pytest.raises(DeepClusterError, match=r"cannot be written \(.*File too large\)"):
        WRITERS[name](file)
    assert [path.name for path in tmp_path.iterdir()] == [name] * kept
    assert not kept or file.read_bytes() == b"old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    for name in ("fsync", "posix_fallocate"):
        monkeypatch.setattr(os, name, full)
    for name, write in WRITERS.items():
        if name != "released.pth.tar":  # slow, and the same door
            with pytest.raises(DeepClusterError, match=os.strerror(code)):
                write(tmp_path / name)
    io_log = tmp_path / "log"
    io_log.write_bytes(b"one\n")
    with pytest.raises(DeepClusterError, match=os.strerror(code)):
        io.append(io_log, b"two\n", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and io_log.read_bytes() == b"one\n"


def test_errors_of_what_is_written_stay_what_they_are(tmp_path: Path) -> None:
    def failing(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="CUDA"):
        write_table(failing, np.arange(10), tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())


FULL = """
import sys, numpy as np
from pathlib import Path
from deepcluster.errors import DeepClusterError
from deepcluster import io
try:
    io.scratch_table(Path(sys.argv[1]) / "a.npy", 4096, 1024)[:] = 1
except DeepClusterError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_does_not_end_the_process_by_a_signal(tmp_path: Path) -> None:
    """A table that is mapped on a disk with room for a sixteenth of it."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
        left = list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (done.returncode, left) == (1, []) and "No space left on device" in done.stderr


def test_a_table_is_filled_block_by_block_and_read_back(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((10, 3), np.float32)
    file = io.write_array(tmp_path / "a.npy", iter([rows[:4], rows[4:]]), 10)
    for found in (np.load(file), np.load(file, mmap_mode="r"), read_npy(file, advice=""), open_table(file)[0]):
        assert np.array_equal(found, rows)
    io.write_array(file, np.zeros((0, 3)))
    assert read_npy(file, advice="", mapped="r").shape == (0, 3)


def read_torch(file: Path) -> None:
    check_seal(file)
    torch.load(file, weights_only=True)


SEALED: list[tuple[Callable[[Path], object], Callable[[Path], object]]] = [
    (lambda file: io.write_safetensors(file, {"a": torch.ones(9)}, {"about": "text"}), read_tensors),
    (lambda file: io.write_array(file, np.arange(9)), lambda file: read_npy(file, advice="")),
    (lambda file: io.write_torch(file, {"a": torch.ones(9)}), read_torch),
]


@pytest.mark.parametrize(("write", "read"), SEALED)
def test_every_flipped_bit_is_noticed(
    tmp_path: Path, write: Callable[[Path], object], read: Callable[[Path], object]
) -> None:
    file = tmp_path / "file"
    write(file)
    read(file)
    content = file.read_bytes()
    places = range(8 * len(content))
    for place in random.Random(0).sample(places, min(600, len(places))):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError):
            read(file)
    for cut in range(1, 24):  # all of it but the end of the seal
        file.write_bytes(content[:-cut])
        with pytest.raises(ValueError):
            read(file)


def test_a_changed_description_is_noticed(tmp_path: Path) -> None:
    file = io.write_json(tmp_path / "a.json", {"bad": [3], "rows": 5}, sealed=True)
    assert read_json(file, advice="") == {"bad": [3], "rows": 5}
    file.write_text(file.read_text().replace("3", "2", 1))
    with pytest.raises(DeepClusterError, match="not what was written"):
        read_json(file, advice="")


def test_files_without_a_seal_are_read(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    np.save(tmp_path / "a.npy", np.arange(9))
    save_file({"a": torch.arange(9)}, tmp_path / "a.safetensors", {"x": "y"})
    torch.save({"a": 1}, tmp_path / "a.ckpt")
    assert read_npy(tmp_path / "a.npy", advice="").tolist() == list(range(9))
    assert read_tensors(tmp_path / "a.safetensors")[0] == {"x": "y"}
    read_torch(tmp_path / "a.ckpt")
    io.write_safetensors(tmp_path / "b.safetensors", {"a": torch.ones(9)}, {"x": "y"})
    with safe_open(tmp_path / "b.safetensors", "pt") as handle:
        metadata = handle.metadata()
    for _ in range(8):  # another program, which keeps the metadata, in random order
        save_file({"a": torch.zeros(9)}, tmp_path / "b.safetensors", metadata)
        assert not read_tensors(tmp_path / "b.safetensors")[1]["a"].any()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone("convnet", image_size=8)
    next(backbone.parameters()).data.view(-1)[0] = float("nan")
    file = export_backbone(backbone, "safetensors", tmp_path / "a.safetensors")
    with pytest.raises(DeepClusterError, match="not finite"):
        read_tensors(file)


def test_what_a_kill_left_is_taken_away_by_the_next_write(tmp_path: Path) -> None:
    """What a process that is gone left; not what is of one that lives, or of another thread."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    file = tmp_path / "a[1].json"
    with io.scratch_folder(file) as own:
        name, living = own.name, tmp_path / own.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
        gone = [tmp_path / name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"), tmp_path / f"{name[:-13]}00000000.part"]
        gone[0].mkdir()
        (gone[0] / "x.npy").write_bytes(b"x")
        gone[1].write_bytes(b"x")
        living.write_bytes(b"x")
        io.write_text(file, "{}")
        assert {path.name for path in tmp_path.iterdir()} == {file.name, name, living.name}
