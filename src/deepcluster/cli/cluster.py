"""`deepcluster cluster SOURCE --out RUN`, and `deepcluster cluster FEATURES.npy --out FILE`.

For a feature table, under `torchrun --nproc-per-node 2 -m deepcluster.cli.main cluster ...` the processes of k-means
and of hierarchical k-means share the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepcluster.cli.common import several_processes, show, spread_over
from deepcluster.data.open import must_exist
from deepcluster.distributed import is_secondary_process
from deepcluster.errors import DeepClusterError, Interrupted, counted

if TYPE_CHECKING:
    from deepcluster.data.source import ImageSource


def cluster(
    source: str,
    /,
    *,
    out: Path,
    backbone: str = "auto",
    image_size: int | None = None,
    algorithm: Literal["kmeans", "temi", "pic", "hierarchical"] = "kmeans",
    k: int | Literal["auto"] = "auto",
    branches: tuple[int, ...] | None = None,
    whiten: int | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    neighbors: int | None = None,
    sigma: float | None = None,
    alpha: float | None = None,
    version: Literal["paper", "published"] | None = None,
    overwrite: bool = False,
    engine: Literal["ray"] | None = None,
    device: str = "auto",
    processes: int = 1,
    json: bool = False,
) -> None:
    """Groups images by the features of a pretrained network, or clusters a feature table.

    With images it writes a run folder with report.html; assign, explore, report, evaluate, visualize and export work
    on it as on a trained run. Interrupted, the same command goes on. A feature table may be larger than memory:
    whitening, k-means and PIC read it in blocks.

    Args:
        source: images, as for train; or a feature table: the .npy file (N, D) float32 or the folder that `deepcluster
            features` wrote, of which NaN rows are left out.
        out: for images the run folder to write; for a feature table the file: .csv or .parquet with the columns index,
            path, cluster, distance.
        backbone: images: the network that describes them: any timm model as timm:NAME, a torchvision model as
            torchvision:NAME, a Hugging Face folder of timm, a file of weights, or a run. auto = DINOv2-small where its
            weights are cached (timm:vit_small_patch14_dinov2.lvd142m downloads them), else
            EfficientNet-Lite0 where its Python package is installed. patches = none from elsewhere: filters are fitted
            to the images in seconds, by k-means of their patches.
        image_size: images: side at which the network sees them, in pixels; None = their own, within 96 and 224
            (16 and 96 for patches).
        algorithm: k-means, self-labelling heads (TEMI), power iteration clustering (PIC) of the nearest-neighbor graph,
            or hierarchical k-means.
        k: number of clusters; auto = chosen from the features, with the evidence on screen and in run.json. PIC finds
            its own.
        branches: hierarchical: number of branches on each level but the last. 4 makes 4 super-clusters of K / 4
            clusters each, 4 10 makes three levels. None = two levels, with about the square root of K branches.
        whiten: PCA-whiten to this width and L2-normalize first; 0 = do not. None = 256 for a feature table, and for
            images 0, which suits pretrained networks better.
        iterations: maximum number of iterations; None = 20 for k-means, 300 for TEMI, 200 for PIC.
        seed: k-means, TEMI, hierarchical: seed of all random draws; None = 0.
        neighbors: PIC: neighbors of each row in the graph; None = 5.
        sigma: PIC: bandwidth of the edge weights exp(-distance^2 / sigma^2); None = 0.2.
        alpha: PIC: share of the graph in each iteration; None = 0.001.
        version: PIC: as in the paper (the default), or as in its published code.
        overwrite: images: replace the run that is already in `out`; features of the same images are kept.
        processes: images: processes on this machine that share them, such as one per GPU; where torchrun or SLURM
            starts them, their number comes from there.
    """
    from deepcluster.clustering.algorithms import check_options

    options: dict[str, Any] = {"branches": branches, "iterations": iterations, "seed": seed}
    options |= {"neighbors": neighbors, "sigma": sigma, "alpha": alpha, "version": version}
    options = {name: value for name, value in options.items() if value is not None}
    if k != "auto":
        options["k"] = k
    check_options(algorithm, options)
    if is_table(Path(source)):
        refuse_options_of_images(source, backbone, image_size, overwrite, processes)
        if engine and algorithm not in ("kmeans", "hierarchical"):
            raise DeepClusterError(f"{algorithm} runs in one process: leave out --engine, or take another --algorithm.")
        _cluster_table(Path(source), out, algorithm, options, 256 if whiten is None else whiten, engine, json)
        return
    refuse_engine(source, engine)
    must_exist(source)
    if out.suffix in (".csv", ".parquet"):
        raise DeepClusterError(
            f"Images are grouped into a run folder, not into {out.name}: give --out a folder; `deepcluster assign` then"
            " writes tables."
        )
    from deepcluster.clustering.metrics import size_stats
    from deepcluster.engine.cluster import cluster_images
    from deepcluster.engine.log import Screen, clusters_of
    from deepcluster.visualize.report import write_report

    screen, own_seed = Screen(quiet=is_secondary_process(), stderr=json), options.pop("seed", 0)
    try:
        run = cluster_images(
            source,
            out,
            backbone=backbone,
            image_size=image_size,
            k=options.pop("k", None),
            algorithm=algorithm,
            options=options,
            whiten=whiten or 0,
            seed=own_seed,
            device=device,
            processes=processes,
            overwrite=overwrite,
            again=not (out / "report.html").exists(),
            screen=screen,
        )
    except Interrupted:
        screen.print("stopped; the same command goes on where it was")
        raise
    if is_secondary_process():
        return
    page = write_report(run)
    sizes: dict[str, Any] = size_stats(run.assignment, len(run.centroids))
    show(
        screen,
        json,
        {"out": str(out), "images": len(run.assignment), "report": str(page), **sizes},
        f"{out}: {counted(int((run.assignment >= 0).sum()), 'image')} in"
        f" {clusters_of(sizes['clusters_used'], sizes['size_min'], sizes['size_max'])}; open {page}, or: deepcluster"
        f" explore {out}",
    )


def refuse_engine(images: str, engine: str | None) -> None:
    """Raises DeepClusterError where images come with an option that feature tables alone have a use for."""
    if engine:
        raise DeepClusterError(
            f"--engine is for feature tables, and {images} are images: write a table first (deepcluster features"
            f" BACKBONE --data {images} --out FOLDER --engine {engine})."
        )


def refuse_options_of_images(
    table: str, backbone: str, image_size: int | None, overwrite: bool, processes: int = 1
) -> None:
    """Raises DeepClusterError where a feature table comes with an option that images alone have a use for."""
    given = {"backbone": backbone != "auto", "image-size": image_size, "overwrite": overwrite}
    for name, is_given in (given | {"processes": processes != 1}).items():
        if is_given:
            raise DeepClusterError(f"--{name} is for images, and {table} is a feature table: leave it out.")


def is_table(path: Path) -> bool:
    """Whether this is a feature table; images may be an .npy file or a folder, too."""
    if path.suffix != ".npy":
        return (path / "table.json").is_file()
    from deepcluster.reading import read_npy

    try:
        found = read_npy(path, advice="", mapped="r", checked=False)
        return found.ndim == 2 or found.dtype != "uint8"  # which images are
    except DeepClusterError:
        return True  # said in a sentence where tables are opened


def _cluster_table(
    file: Path, out: Path, algorithm: str, options: dict[str, Any], whiten: int, engine: str | None, json: bool
) -> None:
    from deepcluster.engine.assignment import Assignment, check_table_name

    check_table_name(out)
    with several_processes(engine) as group:
        from deepcluster.clustering.metrics import size_stats
        from deepcluster.clustering.whitening import Whitening
        from deepcluster.engine.cluster import cluster_features
        from deepcluster.engine.log import Screen, clusters_of
        from deepcluster.features.table import open_table
        from deepcluster.io import scratch_folder

        table, about = open_table(file)
        screen = Screen(stderr=json, quiet=not group.is_first)
        embedding = Whitening(whiten, group=group) if whiten else None
        with spread_over(engine), scratch_folder(out.absolute() if engine else out) as scratch:
            found, choice = cluster_features(
                table, algorithm, options, embedding=embedding, scratch=scratch, bad=about.get("bad"), group=group
            )
        if not group.is_first:
            return
    if choice is not None:
        screen.print(choice.sentence)
    source = source_of(about, len(table))
    paths = [source.path(index) if source else "" for index in range(len(table))]
    Assignment(paths, found.assignment, found.distance).save(out)
    sizes: dict[str, Any] = size_stats(found.assignment, len(found.centroids))
    values = {"out": str(out), "rows": len(table), "objective": float(found.clusterer.inertia_), **sizes}
    used, smallest, largest = sizes["clusters_used"], sizes["size_min"], sizes["size_max"]
    rows = int((found.assignment >= 0).sum())
    left = f"; left out: {counted(len(table) - rows, 'row')} with NaN or infinity" if rows < len(table) else ""
    show(screen, json, values, f"{out}: {counted(rows, 'row')} in {clusters_of(used, smallest, largest)}{left}")


def source_of(about: dict[str, Any], rows: int) -> ImageSource | None:
    """The images of a table, if its .json file names them and they are unchanged."""
    from deepcluster.data.open import open_images

    try:
        source = open_images(about["data"])
    except (KeyError, DeepClusterError):
        return None
    return source if len(source) == rows and source.fingerprint() == about.get("source_fingerprint") else None
