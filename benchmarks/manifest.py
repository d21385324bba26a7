"""Opening a manifest of many shards: by default 100,000 shards of 1,000 images, simulated around one real shard.

    python benchmarks/manifest.py
    python benchmarks/manifest.py --shards 1000      # quicker

A tar file of real pictures is made once; every line of the manifest names it, and the table of all images' places is
written in full. A process of its own opens the manifest, which no file per image or per shard slows down, and reads
images at random. Beside it, what opening one shard by its headers costs: the bound that a manifest takes away. Last,
how fast `deepcluster index` reads shards. Everything is deleted afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MEBI = 1 << 20


def make_shard(file: Path, images: int) -> None:
    """A tar file of small JPEGs in ten class folders."""
    rng = np.random.default_rng(0)
    with tarfile.open(file, "w") as archive:
        for k in range(images):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(stream, "JPEG")
            info = tarfile.TarInfo(f"class{k % 10}/{k:06d}.jpg")
            info.size = stream.tell()
            archive.addfile(info, io.BytesIO(stream.getvalue()))


def simulate(folder: Path, shards: int, each: int) -> Path:
    """A manifest of `shards` times the one shard, with a table of all shards * each rows."""
    from deepcluster.data.indexing import index_shards
    from deepcluster.data.manifest import table_digest

    index_shards([str(folder / "real.tar")], folder / "one.json", workers=1)
    content = json.loads((folder / "one.json").read_text())
    tables = []
    for column in ("index", "labels"):
        one = np.load(folder / content[column])
        content[column] = f"many.{column}.npy"
        table = np.lib.format.open_memmap(folder / content[column], "w+", one.dtype, (shards * each,))
        for start in range(0, len(table), each):
            table[start : start + each] = one
        table.flush()
        tables.append(table)
    content["digest"] = table_digest(*tables)
    line = json.dumps(content["shards"][0])[:-1]
    lines = [line.replace('"row": 0', f'"row": {k * each}') + "}" for k in range(shards)]
    head = json.dumps({key: value for key, value in content.items() if key != "shards"})[:-1]
    (folder / "many.json").write_text(f'{head}, "shards": [\n' + ",\n".join(lines) + "]}\n")
    return folder / "many.json"


def memory(key: str) -> float:
    """MiB that the kernel counts under `key` for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def stage(file: Path) -> None:
    """What is measured: opening, the fingerprint, random images."""
    from deepcluster.data import shards
    from deepcluster.data.open import open_images

    before, anonymous = memory("VmRSS"), memory("RssAnon")
    begun = time.perf_counter()
    source = open_images(file)
    source.fingerprint()
    opened = time.perf_counter()
    after, own = memory("VmRSS"), memory("RssAnon")
    assert isinstance(source, shards.Shards)
    picked = np.random.default_rng(0).integers(0, len(source), 5000).tolist()
    reading = time.perf_counter()
    for index in picked:
        source.raw(index)
    read = time.perf_counter()
    for index in picked[:1000]:
        source.path(index)
    named = time.perf_counter()
    print(
        f"{len(source):,} images: opened, with fingerprint, in {opened - begun:.2f} s, "
        f"{own - anonymous:.0f} MiB of memory for it ({after - before:.0f} MiB resident); then "
        f"{(read - reading) / 5000 * 1e6:.0f} us a random image's bytes, "
        f"{(named - read) / 1000 * 1e6:.0f} us its name; at the end {memory('RssAnon') - anonymous:.0f} MiB"
    )


def main() -> None:
    """Simulates, and runs the stage in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("--stage", type=Path)
    options = parser.parse_args()
    if options.stage:
        stage(options.stage)
        return
    from deepcluster.data.archive import scan

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_shard(folder / "real.tar", options.each)
        file = simulate(folder, options.shards, options.each)
        sizes = {path.name: path.stat().st_size / MEBI for path in (file, *folder.glob("many.*.npy"))}
        print(", ".join(f"{name} {size:,.0f} MiB" for name, size in sizes.items()))
        subprocess.run([sys.executable, __file__, "--stage", str(file)], check=True)
        begun = time.perf_counter()
        scan(str(folder / "real.tar"))
        took = time.perf_counter() - begun
        print(
            f"reading the headers of one shard: {took / options.each * 1e6:.0f} us an image, so {options.shards:,} of "
            f"them in {took * options.shards / 60:.0f} min on one core"
        )


if __name__ == "__main__":
    main()
