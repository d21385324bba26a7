"""Files of torch of every age, and files that want more than to be read."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.errors import DeepClusterError
from deepcluster.models.torch_files import read_torch

PythonPickler: Any = pickle._Pickler  # the one in Python, whose methods can be replaced


class Python2Pickler(PythonPickler):
    """Writes what Python 2's pickle wrote: short texts as bytes, integers beyond 32 bits as text, OrderedDicts as a
    call with a list of pairs."""

    dispatch = PythonPickler.dispatch.copy()

    def save_text(self, text: str) -> None:
        raw = text.encode()
        self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        self.memoize(text)

    def save_integer(self, number: int) -> None:
        if abs(number) < 2**31:
            super().save_long(number)
        elif number == torch.serialization.MAGIC_NUMBER:  # a long even in Python 2
            raw = pickle.encode_long(number)
            self.write(pickle.LONG1 + bytes([len(raw)]) + raw)
        else:
            self.write(pickle.INT + repr(number).encode() + b"\n")

    def save_ordered(self, pairs: OrderedDict[Any, Any]) -> None:
        self.save_reduce(OrderedDict, ([list(pair) for pair in pairs.items()],), obj=pairs)

    dispatch[str] = save_text
    dispatch[int] = save_integer
    dispatch[OrderedDict] = save_ordered


def python2(state: Any, file: Path) -> Path:
    def dump(value: Any, stream: Any, protocol: int) -> None:
        Python2Pickler(stream, protocol).dump(value)

    module: Any = SimpleNamespace(__name__="cPickle", Pickler=Python2Pickler, dump=dump)
    torch.save(state, file, pickle_module=module, pickle_protocol=2, _use_new_zipfile_serialization=False)
    return file


def tar(state: Any, file: Path) -> Path:
    """torch's form before 0.1.10, of contiguous float tensors; two tensors may share a storage."""
    tensors: dict[int, torch.Tensor] = {}
    storages: dict[int, torch.Tensor] = {}

    class Pickler(Python2Pickler):
        def persistent_id(self, value: Any) -> str | None:
            if not isinstance(value, torch.Tensor):
                return None
            tensors[id(value)] = value
            storages[value.untyped_storage()._cdata] = value
            return str(id(value))

    objects = io.BytesIO()
    Pickler(objects, 2).dump(state)
    first, second = io.BytesIO(), io.BytesIO()
    first.write(pickle.dumps(len(storages), 2))
    for key, value in storages.items():
        first.write(pickle.dumps((key, "cpu", torch.FloatStorage), 2))
        flat = torch.frombuffer(bytearray(bytes(value.untyped_storage())), dtype=torch.float32).numpy()
        first.write(struct.pack("<q", len(flat)) + flat.astype("<f4").tobytes())
    first.write(pickle.dumps([], 2))
    second.write(pickle.dumps(len(tensors), 2))
    for key, value in tensors.items():
        second.write(pickle.dumps((key, value.untyped_storage()._cdata, torch.FloatTensor), 2))
        numbers = (*value.shape, *value.stride(), value.storage_offset())
        second.write(struct.pack("<i4x", value.ndim) + struct.pack(f"<{len(numbers)}q", *numbers))
    with tarfile.open(file, "w:") as archive:
        for name, stream in (("storages", first), ("tensors", second), ("pickle", objects)):
            member = tarfile.TarInfo(name)
            member.size = stream.tell()
            stream.seek(0)
            archive.addfile(member, stream)
    return file


def new(state: Any, file: Path) -> Path:
    torch.save(state, file)
    return file


def legacy(state: Any, file: Path) -> Path:
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file


def trained() -> dict[str, Any]:
    """A small checkpoint with all that a training script of the time left: momentum by address, None, nesting."""
    network = torch.nn.Linear(3, 2)
    base = torch.randn(12)
    weights = OrderedDict(network.state_dict().items(), part=base[2:8].view(2, 3), turned=base.view(3, 4).t())
    parameters = list(network.parameters())
    group = {"lr": 0.05, "momentum": 0.9, "nesterov": False, "params": [id(each) for each in parameters]}
    momentum = {id(each): {"momentum_buffer": torch.randn_like(each)} for each in parameters}
    optimizer = {"state": momentum, "param_groups": [group]}
    return {"epoch": 7, "arch": "alexnet", "best": None, "state_dict": weights, "optimizer": optimizer}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("write", [new, legacy, python2, tar])
def test_every_form_is_read(write: Any, tmp_path: Path) -> None:
    state = trained()
    assert max(state["optimizer"]["param_groups"][0]["params"]) > 2**31  # an address, the case of old optimizers
    file = write(state, tmp_path / "checkpoint.pth.tar")
    with_torch = torch.load(file, weights_only=False, encoding="utf-8")  # the oracle; it would run code
    assert same(state, with_torch)
    assert same(state, read_torch(file))


def test_torch_alone_refuses_the_old_forms(tmp_path: Path) -> None:
    """Else the reader could be shorter."""
    for write in (python2, tar):
        with pytest.raises((pickle.UnpicklingError, RuntimeError)):
            torch.load(write(trained(), tmp_path / "checkpoint"), weights_only=True)


class Command:
    """Makes a folder when it is unpickled: harmless here, any command elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", [new, legacy, python2, tar])
def test_code_is_refused_and_not_run(write: Any, tmp_path: Path) -> None:
    state = trained() | {"epoch": Command(tmp_path / "made")}
    file = write(state, tmp_path / "checkpoint.pth.tar")
    with pytest.raises(
        DeepClusterError, match=r"asks for (posix|nt|os)\.mkdir, .*could run code, so it was not loaded"
    ):
        read_torch(file)
    assert not (tmp_path / "made").exists()
    torch.load(file, weights_only=False, encoding="utf-8")
    assert (tmp_path / "made").exists()  # so the file was as bad as it should be


def test_code_behind_a_text_integer_is_refused(tmp_path: Path) -> None:
    """The second reading, of the rewritten file, is as strict as the first."""
    state = {"optimizer": [2**40], "epoch": Command(tmp_path / "made")}
    with pytest.raises(DeepClusterError, match="could run code"):
        read_torch(python2(state, tmp_path / "checkpoint"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("write", [new, legacy])
def test_harmless_objects_are_named_too(write: Any, tmp_path: Path) -> None:
    """A NumPy number among the scores is refused by torch as well; the sentence says what to leave out."""
    with pytest.raises(DeepClusterError, match=r"asks for numpy\.\S+, .* state_dict alone, without the optimizer"):
        read_torch(write({"best": np.float64(0.5), "state_dict": {}}, tmp_path / "checkpoint"))


@pytest.mark.parametrize("write", [new, legacy, python2, tar])
def test_a_file_that_is_cut_short_is_refused(write: Any, tmp_path: Path) -> None:
    file = write(trained(), tmp_path / "whole")
    whole, end = file.read_bytes(), file.stat().st_size
    if write is tar:
        with tarfile.open(file) as archive:
            end = max(member.offset_data + member.size for member in archive)  # then there is only padding
    cut = tmp_path / "cut"
    for length in {*range(0, end, 97), end - 1}:
        cut.write_bytes(whole[:length])
        # Where a name is cut in two, what is left of it is a name that is refused.
        with pytest.raises(DeepClusterError, match=r"cut short or damaged|asks for"):
            read_torch(cut)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"text", bytes(range(256)) * 10, b"PK\x03\x04 no archive"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(DeepClusterError, match="is not a file of torch"):
            read_torch(tmp_path / "other")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "other", "000.jpg")
    with pytest.raises(DeepClusterError, match="is not a file of torch"):
        read_torch(tmp_path / "shard.tar")
    with pytest.raises(DeepClusterError, match="missing cannot be read"):
        read_torch(tmp_path / "missing")
    with pytest.raises(DeepClusterError, match="cannot be read"):
        read_torch(tmp_path)
