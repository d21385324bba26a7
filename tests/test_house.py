"""The house itself: layers, lint, types and names."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import deepcluster as dc

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        "lint-imports --no-cache",
        "ruff check src tests benchmarks examples",
        "ruff format --check src tests benchmarks examples",
        pytest.param("mypy", marks=pytest.mark.slow),  # two thirds of a minute, and `make check` runs it
    ],
)
def test_checks_pass(command: str) -> None:
    tool, *rest = shlex.split(command)
    if not (BIN / tool).exists():
        pytest.skip(f"{tool} is not installed beside this Python; `make test` installs it")
    done = subprocess.run([str(BIN / tool), *rest], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_public_names() -> None:
    assert len(dc.__all__) == len(set(dc.__all__))
    for name in dc.__all__:
        assert getattr(dc, name).__doc__ or name == "PRESETS", name
    assert set(dc.__all__) <= set(dir(dc))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dc.trian


def test_constraints_name_packages_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r'[\w.-]+==[\w.+]+ ; python_version >= "3.11"', line), line


def test_every_dependency_is_explained_and_pinned() -> None:
    """The table of docs/trust.md lists pyproject.toml's packages with their extras, no more and no fewer."""
    declared = set()
    project = (ROOT / "pyproject.toml").read_text().partition("[project]")[2]
    for extra, listed in re.findall(r'^(\w+) = \[(?=\s*"[\w-]+>=)(.*?)\]', project, re.M | re.S):
        declared |= {(name, extra.replace("dependencies", "")) for name in re.findall(r'"([\w-]+)>=[\d.]+"', listed)}
    table = (ROOT / "docs" / "trust.md").read_text().partition("## Dependencies")[2]
    rows = re.findall(r"^\| ([\w-]+) \| (\w*) ?\| (.+) \| (.+) \|$", table, re.M)
    assert {(name, extra) for name, extra, *_ in rows if name != "package"} == declared and len(declared) > 30
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert {name for name, _ in declared} - pinned == {"s3fs", "gcsfs"}  # these follow fsspec


# Files are read and written through `reading`, `io` and the doors below, each with what it may call and why.
DOORS = {
    "reading.py": "open json.loads fromfile memmap np.load safe_open torch.load ZipFile",
    "io.py": "open torch.save open_memmap write_bytes json.loads",  # json.loads: of what safetensors has just made
    "seal.py": "open json.loads",  # json.loads: of what it has just written
    "lock.py": "os.open",
    "data/decode.py": "open",  # the head of an image
    "data/archive.py": "tarfile.open ZipFile archive.open",  # judged there, member by member
    "engine/ray_session.py": "os.open fdopen",  # /dev/null, and stderr
    "engine/occupy.py": "write_text",  # in a folder that is renamed when it is whole
    "data/storage.py": "open os.open system.open",  # shards, by byte offset, local and remote
    "data/parquet.py": "ParquetFile",
    "data/shards.py": "open savez",  # within io.write_atomic
    "data/indexing.py": "memmap",  # what it has just written to a folder of its own
    "data/cache_entry.py": "open memmap np.save write_text",  # a folder of its own, renamed when it is whole
    "engine/assignment.py": "write_table",  # within io.write_atomic
    "evaluate/voc/annotation.py": "Image.open",  # a mask: indices, not colors
    "explore/atlas.py": "write_table",  # within io.write_atomic
    "features/block_reader.py": "os.open",  # what read_npy has mapped
    "features/knn.py": "nearest.open",  # a method of its own
    "models/torch_files.py": "pickle pickletools tarfile.open torch.load read_bytes",  # opcodes that are split, not run
    "cli/options.py": "read_text",  # our own source
    "explore/pages.py": "read_bytes",  # our own page
    "cli/main.py": "os.open fdopen",  # /dev/null, for streams that are not there
    "cli/explore.py": "webbrowser.open NamedTemporaryFile",  # a page that only this user can read
}  # fmt: skip
FILES = {
    "open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "memmap", "open_memmap", "fromfile",
    "tofile", "loadtxt", "savetxt", "genfromtxt", "fromregex", "savez", "savez_compressed", "safe_open", "load_file",
    "save_file", "ZipFile", "GzipFile", "read_table", "write_table", "ParquetFile", "read_csv", "to_csv",
    "read_parquet", "to_parquet", "NamedTemporaryFile", "TemporaryFile", "mkstemp", "json.load", "json.loads",
    "json.dump", "np.load", "np.save", "numpy.load", "numpy.save", "torch.load", "torch.save", "jit.load", "jit.save",
    "joblib.load", "joblib.dump",
}  # fmt: skip
UNPICKLERS = {"pickle", "pickletools", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}


def files_touched(code: str) -> set[str]:
    """The functions called that read or write files, but those of the doors, and modules that run what they read."""
    found: set[str] = set()
    ours: set[str] = set()
    calls: list[ast.expr] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in UNPICKLERS}
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {name.name for name in node.names}
            if module.partition(".")[0] == "deepcluster":
                ours |= names
            else:
                found |= {module} & UNPICKLERS
                found |= {name for name in names if name in FILES or f"{module}.{name}" in FILES}
        elif isinstance(node, ast.FunctionDef):
            ours.add(node.name)
        elif isinstance(node, ast.Call):
            calls.append(node.func)
    ours.discard("open")
    for call in calls:
        owner = getattr(call, "value", None)
        name, last = (getattr(node, "attr", getattr(node, "id", "")) for node in (call, owner))
        if f"{last}.{name}" in FILES:
            found.add(f"{last}.{name}")
        elif name in FILES and (last or name) not in ours:
            found.add(f"{last}.open" if name == "open" and last else name)
    return found


def test_files_are_opened_at_the_doors_only() -> None:
    """Elsewhere call `deepcluster.reading` and `deepcluster.io`: they bound, judge and seal, and say one sentence."""
    package = ROOT / "src/deepcluster"
    found = {file.relative_to(package).as_posix(): files_touched(file.read_text()) for file in package.rglob("*.py")}
    allowed = {name: set(calls.split()) for name, calls in DOORS.items()}
    assert {name: calls for name, calls in found.items() if calls} == allowed


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np\nnp.load(file)", "np.memmap(file)", "json.load(handle)", "json.loads(text)",
        "import pickle", "from pickle import loads", "torch.load(file)", "np.lib.format.open_memmap(file)",
        "open(file, 'w')", "Path(file).open()", "file.with_suffix('.x').read_text()", "a[0].write_bytes(x)",
        "from json import loads", "from torch import load", "gzip.open(file)", "Image.open(file)", "import yaml",
        "array.tofile(file)", "torch.jit.load(file)", "from safetensors.torch import load_file",
    ],
)  # fmt: skip
def test_a_file_opened_elsewhere_is_noticed(code: str) -> None:
    assert files_touched(code)
    assert not files_touched(
        "from deepcluster import io\nfrom deepcluster.io import write_text\nwrite_text(f, io.x(t))"
    )
