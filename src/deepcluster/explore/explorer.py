"""Everything the page asks for: a run, its images, its edits, and what is computed in the background."""

from __future__ import annotations

import contextlib
import copy
import shutil
import threading
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deepcluster.clustering.kmeans import KMeans
from deepcluster.data.decode import decode
from deepcluster.data.open import open_images
from deepcluster.data.source import ImageSource, known_labels
from deepcluster.digest import digest
from deepcluster.engine.assignment import column
from deepcluster.engine.log import Screen
from deepcluster.engine.model import MODEL
from deepcluster.engine.subject import short_side
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.explore import duplicates, exports, layout, vectors
from deepcluster.explore.catalog import Catalog, json_number
from deepcluster.explore.groups import Groups
from deepcluster.explore.jobs import Job, Pending
from deepcluster.explore.journal import Journal
from deepcluster.explore.suggestions import SEED
from deepcluster.explore.thumbs import Thumbs, patient
from deepcluster.explore.vectors import Vectors
from deepcluster.io import write_array, write_json
from deepcluster.reading import judged, read_json, read_npy, read_tensors
from deepcluster.visualize.clustered_images import check_training_images

if TYPE_CHECKING:
    from deepcluster.engine.run import Run

EXPORTS = {"csv": "labels.csv", "coco": "coco.json", "folders": "folders"}


class Explorer:
    """One run, open for browsing and editing.

    Args:
        source: images to show in place of those the run was trained on, which are opened when they are needed.
        assignment: (N,) clusters of `source`; None = the run's own.
        distance: (N,) distances that go with them.
        folder: where edits and vectors are kept; None = RUN/explore.
    """

    def __init__(
        self,
        run: Run,
        source: ImageSource | None = None,
        assignment: np.ndarray | None = None,
        distance: np.ndarray | None = None,
        folder: Path | None = None,
    ) -> None:
        self.run = run
        self.folder = folder or run.folder / "explore"
        if assignment is None:
            assignment, distance = run.assignment, run.distance
        self.lock = threading.RLock()
        self.groups = Groups(assignment)
        # the centers alone: the network is loaded when something is put through it, and not before
        self.catalog = Catalog(self.groups, distance, cache(lambda: _centroids_of(run)))
        self.journal = Journal(self.folder / "edits.jsonl", self.groups)
        self.catalog.refresh()
        self._own_images = folder is None
        self.thumbs = Thumbs(lambda: self.jobs["images"].wait(120))
        self.jobs: dict[str, Job] = {
            "images": Job("opening the images", lambda job: self._open(source)),
            "vectors": Job("computing features", self._describe),
            "duplicates": Job("looking for near-duplicates", self._twins),
            "export": Job("exporting", lambda job: None),
            **{f"map {name}": Job("laying out the map", partial(self._layout, name)) for name in layout.LAYOUTS},
        }
        self.jobs["images"].start()

    @property
    def mark(self) -> str:
        """Stands in addresses of thumbnails, so that a browser never shows those of another run."""
        own = "" if self._own_images else self.folder.name
        return f"{self.run.config['source_fingerprint'][:12]}{own}"

    @property
    def source(self) -> ImageSource:
        """The images; as `need`."""
        found: ImageSource = self.need("images")
        return found

    def close(self) -> None:
        """Stop the background jobs; finished parts are kept."""
        for job in self.jobs.values():
            job.stop()

    def state(self) -> dict[str, Any]:
        """What the page shows around all views."""
        with self.lock:
            table, gone = self.catalog.table(), self.jobs["images"].error
            notices = [self.journal.notice] if self.journal.notice else []
            if gone:
                way_out = "" if "--data" in gone else ". If they have moved, start again with --data FOLDER."
                notices.append(f"The images cannot be shown: {gone}{way_out}")
            return {
                "revision": self.journal.revision,
                "version": self.catalog.version,
                "images": len(self.groups),
                "clusters": int((table.number >= 0).sum()),
                "hidden": len(self.groups.hidden),
                "selected": int(self.groups.selected.sum()),
                "unassigned": int((self.groups.group < 0).sum()),
                "labelled": self.catalog.labels is not None,
                "undo": self.journal.can_undo,
                "redo": self.journal.can_redo,
                "notices": notices,
                "jobs": {name: job.as_dict() for name, job in self.jobs.items()},
            }

    def edit(self, edit: Mapping[str, Any]) -> None:
        """Make an edit of `Groups.plan`, kept and undoable; a split with `into` in place of `parts` finds these itself,
        and raises Pending while it needs vectors that are being computed."""
        if edit.get("op") == "split" and "parts" not in edit:
            edit = {"op": "split", "cluster": edit.get("cluster"), "parts": self._parts(edit)}
        with self.lock:
            self.journal.do(edit)
            self.catalog.update(self.groups.touched)

    def step(self, which: Literal["undo", "redo"], revision: int | None = None) -> str:
        """Undo the last edit or redo the last undone one, and return it in words; see `Journal.step`."""
        with self.lock:
            words = self.journal.step(which, revision)
            self.catalog.update(self.groups.touched)
            return words

    def image(self, index: int) -> dict[str, Any]:
        """One image for the page, with its path where the images are open."""
        source: ImageSource | None = self.jobs["images"].result
        return {**self.catalog.image(index), "path": f"image {index}" if source is None else source.path(index)}

    def images(self, index: np.ndarray, part: slice = slice(None), **numbers: np.ndarray) -> dict[str, Any]:
        """A part of the images `index` (M,) for the page, with (M,) `numbers` such as similarities of each."""
        with self.lock:
            shown = [self.image(one) for one in index[part].tolist()]
        for name, values in numbers.items():
            for image, value in zip(shown, values[part], strict=True):
                image[name] = json_number(value)
        return {"total": len(index), "images": shown}

    def similar(self, vector: np.ndarray, count: int, but: int | None = None) -> dict[str, Any]:
        """The images most similar to a vector, for the page; see `Vectors.nearest`."""
        index, similarity = self.vectors().nearest(vector, count, but)
        return self.images(index, similarity=similarity)

    def photo(self, content: bytes, count: int) -> dict[str, Any]:
        """The cluster of a picture that is none of the images, and the images most similar to it."""
        try:
            with patient():
                picture = decode(content, short_side(self.run.image_size))
        except BadImage as error:
            raise DeepClusterError(f"This file cannot be read as a picture ({error}): drop another.") from None
        features = self.run.features(np.array(picture[None]))
        clusters, distance = self.run.model.nearest(features)
        vector = np.asarray(self.run.embed(features))[0]
        with self.lock:
            cluster = self.catalog.current_group(int(clusters[0]), vector)
            empty = not (self.groups.group == cluster).any()
            found = {
                "cluster": None if empty else self.catalog.row(cluster),
                "found": int(clusters[0]),
                "distance": round(float(distance[0]), 4),
                "neighbors": None,
            }
        try:
            found["neighbors"] = self.similar(vector, count)
        except Pending as pending:
            found["pending"] = pending.job.as_dict()
        return found

    def export(self, kind: str, selection: bool) -> Path:
        """Begin to write `EXPORTS[kind]` under the run's folder `explore/exports`; returns where it will be."""
        if kind not in EXPORTS:
            raise DeepClusterError(f"There is no export as {kind!r}: choose one of {', '.join(EXPORTS)}.")
        out, source = self.folder / "exports" / EXPORTS[kind], self.source

        def write(job: Job) -> dict[str, Any]:
            if kind == "folders" and out.is_dir():
                shutil.rmtree(out)  # links of ours, from the last time
            what, images = exports.write(out, now, source, only, job.tell)
            return {"kind": kind, "what": what, "images": images, "path": str(out)}

        with self.lock:  # of two simultaneous requests, one is refused
            if self.jobs["export"].state == "running":
                raise DeepClusterError("Another export is running: wait until it is done.")
            now = copy.deepcopy(self.groups)  # whatever is edited meanwhile
            only = np.flatnonzero(now.selected) if selection else None
            self.jobs["export"] = Job("exporting", write).start()
        return out

    def vectors(self) -> Vectors:
        """A vector for every image; as `need`."""
        found: Vectors = self.need("vectors")
        return found

    def need(self, name: str) -> Any:
        """The result of a job; see `Job.need`. One that failed is tried again with the next request, as a disk may have
        been full; images that are gone are not."""
        try:
            return self.jobs[name].need()
        except DeepClusterError:
            if name != "images":
                self.jobs[name].reset()
            raise

    def _open(self, source: ImageSource | None) -> ImageSource:
        found = self.run.source() if source is None else source
        if self._own_images:  # one image more, and every file would have its neighbor's cluster
            check_training_images(self.run, found)
        with self.lock:
            self.catalog.set_labels(known_labels(found), found.classes)
        if self.journal.done and any(self.folder.glob("vectors-*.npy")):
            self.jobs["vectors"].start()  # of edited clusters, centers and distances are those of their images
        return found

    def _describe(self, job: Job) -> Vectors:
        source = self.jobs["images"].wait()
        found = vectors.make(self.run, source, self.folder, source.fingerprint(), job)
        with self.lock:
            self.catalog.vectors = found
            self.catalog.refresh()
        return found

    def _waited_vectors(self, job: Job) -> Vectors:
        """The vectors, for a job that needs them; it tells their progress as its own meanwhile."""
        before = self.jobs["vectors"]
        before.reset()
        while before.start().state != "done":  # it may have been stopped before it was ready
            before.wait(0.2)
            job.tell(before.count, before.total, before.stage)
        found: Vectors = before.result
        return found

    def _layout(self, name: str, job: Job) -> np.ndarray:
        table = self._waited_vectors(job)
        mark = vectors.identity(self.run, self.jobs["images"].result.fingerprint())
        file = self.folder / f"map-{name}-{mark}.npy"
        with contextlib.suppress(OSError, DeepClusterError):  # not there, or damaged
            kept = read_npy(file, advice="")
            if kept.shape == (len(table), 2) and kept.dtype == np.int16:
                return kept
        job.tell(0, len(table), "laying out the map")
        found = layout.LAYOUTS[name](table, job.tell)
        write_array(file, found)
        return found

    def _twins(self, job: Job) -> duplicates.Twins:
        table = self._waited_vectors(job)
        job.tell(0, len(table), "looking for near-duplicates")
        return duplicates.twins(table, self.groups.original, job.tell)

    def _parts(self, edit: Mapping[str, Any]) -> list[list[int]]:
        """The images that leave a cluster when it is cut by k-means; the largest part stays."""
        cluster, into = edit.get("cluster"), edit.get("into", 2)
        if type(into) is not int or not 2 <= into <= 100:
            raise DeepClusterError("A cluster is split into 2 to 100 parts.")
        table = self.vectors()
        with self.lock:
            members = self.groups.members(cluster if type(cluster) is int else -2)
        members = np.setdiff1d(members, table.bad)
        if len(members) < into:
            raise DeepClusterError(f"Cluster {cluster!r} has too few images to be split into {into} parts.")
        rows = np.asarray(table.rows[members])
        part = np.asarray(KMeans(n_clusters=into, random_state=SEED, max_iter=50).fit_predict(rows))
        order = np.argsort(-np.bincount(part, minlength=into), kind="stable")
        return [members[part == one].tolist() for one in order[1:] if (part == one).any()]


def open_explorer(run: Run, data: str | None = None, screen: Screen | None = None) -> Explorer:
    """A run with the images it was trained on, those by another path, or other ones, which are put through the network
    first, once; edits of those are kept apart."""
    if not run.clustered:
        raise DeepClusterError(
            f"{run.folder} predicts rotations alone and has no clusters to explore: explore another run."
        )
    if data is None:
        return Explorer(run)
    source = open_images(data)
    mark = source.fingerprint()
    if mark == run.config["source_fingerprint"]:
        return Explorer(run, source)
    folder = run.folder / "explore" / f"other-{mark[:12]}-{vectors.identity(run, mark)}"
    kept, owner = folder / "assigned.json", digest(folder.name)
    if not kept.is_file():
        pixels = run.pixels(source)
        with (screen or Screen(quiet=True)).bar("assigning", len(pixels)) as bar:
            found = run.assign(pixels, check=bar)
        write_array(folder / "distance.npy", found.distance, owner=owner)
        write_array(folder / "assignment.npy", found.cluster, owner=owner)
        write_json(kept, {"images": len(source), "source": source.name})
    advice = f"delete {folder} and give the same command again."
    with judged(kept, advice):
        if read_json(kept, advice=advice)["images"] != len(source):
            raise ValueError("it is of other images")
    assignment, distance = (
        column(folder / f"{name}.npy", kinds, len(source), owner, advice)
        for name, kinds in (("assignment", "iu"), ("distance", "f"))
    )
    return Explorer(run, source, assignment, distance, folder)


def _centroids_of(run: Run) -> np.ndarray:
    file = run.folder / MODEL
    _, tensors = read_tensors(file, owner=run.id)
    if "centroids" not in tensors:
        raise DeepClusterError(f"{file} is not a model that deepcluster saved: give the folder of a run.")
    return np.asarray(tensors["centroids"].float().numpy())
