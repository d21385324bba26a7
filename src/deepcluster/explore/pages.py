"""What the explorer answers: a page, its files, and JSON. Images are served by index only."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from deepcluster.data.naming import printable
from deepcluster.errors import BadImage, DeepClusterError, counted
from deepcluster.explore import history, layout, suggestions, thumbs
from deepcluster.explore.duplicates import ALIKE, Twins
from deepcluster.explore.explorer import EXPORTS, Explorer
from deepcluster.explore.jobs import Pending
from deepcluster.explore.journal import ChangedMeanwhile
from deepcluster.reading import parse_json

PAGE = 500
"""Images or clusters of one answer at most."""
STATIC = Path(__file__).parent / "static"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}

Answer = Response | bytes | dict[str, Any]
"""What a handler gives: bytes are numbers of a map, a dict becomes JSON."""


class Json(JSONResponse):
    """JSON of any names."""

    def render(self, content: Any) -> bytes:
        """The answer's bytes."""
        return printable(json.dumps(content, ensure_ascii=False, allow_nan=False)).encode()


class Pages:
    """The handlers, one method each; `routes` says which address each answers."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.catalog = explorer, explorer.catalog
        # No path of a request ever reaches the file system: these are the files there are.
        self.files = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in KINDS}

    def routes(self) -> list[Route]:
        """Address -> handler."""
        explorer, catalog, groups = self.explorer, self.catalog, self.explorer.groups
        free: dict[str, Callable[[Request], Answer]] = {
            "/": self.page,
            "/static/{name}": self.static,
            "/thumb/{index}": self.picture,
            "/image/{index}": self.picture,
            "/api/images/{index}": self.image,
            "/api/images/{index}/neighbors": self.neighbors,
            "/api/map/{name}": self.map_positions,
            "/api/duplicates": self.duplicates,
            "/api/suggestions": self.suggestions,
            "/api/history": lambda request: history.curves(explorer.run),
            "/api/history/{epoch}": lambda request: history.of_epoch(
                explorer.run, _number(request.path_params["epoch"], "An epoch")
            ),
            "/api/exports/{kind}": self.exported,
        }
        locked: dict[str, Callable[[Request], Answer]] = {  # they look at the groups, which no edit changes meanwhile
            "/api/state": lambda request: explorer.state(),
            "/api/clusters": self.clusters,
            "/api/clusters/{cluster}": lambda request: (
                catalog.row(_cluster(request)) | {"classes": catalog.classes_in(_cluster(request))}
            ),
            "/api/clusters/{cluster}/members": lambda request: explorer.images(
                catalog.members(_cluster(request), farthest=request.query_params.get("order") == "far"), _slice(request)
            ),
            "/api/clusters/{cluster}/nearest": self.nearest,
            "/api/map/groups": lambda request: (
                np.where(groups.is_hidden(groups.group), -2, groups.group).astype("<i4").tobytes()
            ),
            "/api/outliers": self.outliers,
            "/api/selection": lambda request: explorer.images(np.flatnonzero(groups.selected), _slice(request)),
        }
        post: dict[str, Callable[[bytes], Answer]] = {
            "/api/undo": partial(self.step, "undo"),
            "/api/redo": partial(self.step, "redo"),
            "/api/edits": self.edit,
            "/api/export": self.export,
            "/api/photo": lambda content: explorer.photo(content, 60),
        }
        return [
            *(Route(path, partial(_get, handler, explorer.lock), methods=["GET"]) for path, handler in locked.items()),
            *(Route(path, partial(_get, handler, nullcontext()), methods=["GET"]) for path, handler in free.items()),
            *(Route(path, partial(_post, handler), methods=["POST"]) for path, handler in post.items()),
        ]

    def page(self, request: Request) -> Answer:
        """The page itself."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)
        run = self.explorer.run
        done, epochs = (len(run.metrics), run.config["settings"]["epochs"]) if run.params.trains else (0, 0)
        about = counted(run.config["images"], "image")
        if epochs:
            about += f" · {f'{done} of ' * (done < epochs)}{counted(epochs, 'epoch')}"
        text = environment.get_template("explore.html").render(
            mark=self.explorer.mark, title=run.folder.name or str(run.folder), about=about, done=done, epochs=epochs,
            folder=str(self.explorer.folder),
        )  # fmt: skip
        return Response(printable(text), media_type="text/html")

    def static(self, request: Request) -> Answer:
        """A file of the page."""
        path = self.files.get(request.path_params["name"])
        if path is None:
            return Json({"error": "There is no such file."}, 404)
        return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})

    def picture(self, request: Request) -> Answer:
        """A square thumbnail, or an image in full, shrunk where it is very large."""
        index, made = self._index(request), self.explorer.thumbs
        small = request.url.path.startswith("/thumb/")
        side = _integer(request, "side", thumbs.SIDES[0]) if small else 0
        if small and side not in thumbs.SIDES:
            raise DeepClusterError(f"Thumbnails have a side of {' or '.join(map(str, thumbs.SIDES))} pixels.")
        known = {**FOREVER, "etag": f'"{self.explorer.mark}-{index}-{side}"'}
        if request.headers.get("if-none-match") == known["etag"]:
            return Response(status_code=304, headers=known)
        try:
            content = made.get(index, side) if side else made.full(index)
        except BadImage:
            return Response(thumbs.placeholder(), media_type="image/png", headers={"x-image": "missing"})
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return Response(content, media_type=kind, headers=known)

    def clusters(self, request: Request) -> Answer:
        """A page of the table."""
        query, catalog = request.query_params, self.catalog
        found = catalog.rows(
            sort=query.get("sort", "clear"),
            descending=query.get("descending", "1") == "1",
            search=query.get("search", "")[:200],
            hidden=query.get("hidden", "0") == "1",
            part=_slice(request),
        )
        for row in found["rows"]:
            row["cover"] = catalog.cover(row["id"])
        return found

    def nearest(self, request: Request) -> Answer:
        """The clusters nearest to one."""
        number, catalog = _cluster(request), self.catalog
        catalog.row(number)
        near = catalog.nearest([number], min(_integer(request, "limit", 12), 50))[number]
        shown = ({**catalog.row(one), "apart": round(far, 4), "cover": catalog.cover(one)} for one, far in near)
        return {"clusters": list(shown)}

    def image(self, request: Request) -> Answer:
        """One image, with its cluster's name and, where it cannot be read, the reason."""
        index, reason = self._index(request), ""
        try:
            self.explorer.thumbs.read(index, 8)
        except BadImage as error:
            reason = str(error)
        with self.explorer.lock:
            found = self.explorer.image(index)
            return {**found, "name": self.catalog.name(found["cluster"]), "reason": reason}

    def neighbors(self, request: Request) -> Answer:
        """The images most similar to one."""
        index, count = self._index(request), min(max(1, _integer(request, "limit", 60)), PAGE)
        table = self.explorer.vectors()
        if index in table.bad:
            return {"total": 0, "images": []}
        return self.explorer.similar(table.rows[index], count, but=index)

    def map_positions(self, request: Request) -> Answer:
        """(N, 2) little-endian int16 of a layout of the map."""
        name = request.path_params["name"]
        if name not in layout.LAYOUTS:
            raise DeepClusterError(f"There is no map {name!r}: choose one of {', '.join(layout.LAYOUTS)}.")
        positions: np.ndarray = self.explorer.need(f"map {name}")
        return positions.tobytes()

    def outliers(self, request: Request) -> Answer:
        """A page of the images that are farthest from their center for their cluster."""
        index, score = self.catalog.outliers()
        return self.explorer.images(index, _slice(request), score=score)

    def duplicates(self, request: Request) -> Answer:
        """A page of groups of near-duplicates."""
        try:
            least = float(request.query_params.get("similarity", ALIKE))
        except ValueError:
            raise DeepClusterError("The similarity is a number from 0 to 1.") from None
        found: Twins = self.explorer.need("duplicates")
        groups = found.groups(least)
        shown = [
            {
                **self.explorer.images(group, slice(60)),
                "similarity": round(float(found.similarity[group].max()), 4),
                "ids": group.tolist(),  # all of them, of which `images` are the first
            }
            for group in groups[_slice(request, 20)]
        ]
        return {"total": len(groups), "images": sum(map(len, groups)), "groups": shown}

    def suggestions(self, request: Request) -> Answer:
        """Clusters that may be merged or split, and how many images look like duplicates."""
        explorer = self.explorer
        twins: Twins = explorer.need("duplicates")
        alike = twins.groups(ALIKE)
        found = suggestions.suggest(self.catalog, explorer.vectors(), explorer.lock)
        return {"suggestions": found, "duplicates": {"groups": len(alike), "images": sum(map(len, alike))}}

    def exported(self, request: Request) -> Answer:
        """What an export wrote, to be downloaded."""
        name = EXPORTS.get(request.path_params["kind"])
        file = self.explorer.folder / "exports" / name if name else None
        if file is None or not file.is_file():
            return Json({"error": "There is no such export."}, 404)
        return FileResponse(file, filename=name)

    def edit(self, content: bytes) -> Answer:
        """Make an edit."""
        self.explorer.edit(_object(content))
        return self.explorer.state()

    def step(self, which: Literal["undo", "redo"], content: bytes) -> Answer:
        """Undo or redo the edit that the page knows as the last."""
        revision = _object(content).get("revision")
        if revision is not None and type(revision) is not int:
            raise DeepClusterError("A revision is a whole number.")
        with self.explorer.lock:
            return {"turned": self.explorer.step(which, revision), **self.explorer.state()}

    def export(self, content: bytes) -> Answer:
        """Begin to write an export."""
        asked = _object(content)
        out = self.explorer.export(str(asked.get("kind")), asked.get("selection") is True)
        return {"path": str(out), "job": self.explorer.jobs["export"].as_dict()}

    def _index(self, request: Request) -> int:
        index = _number(request.path_params["index"], "An image")
        if index >= len(self.explorer.groups):
            raise DeepClusterError(f"There is no image {index}: indices are 0 to {len(self.explorer.groups) - 1}.")
        return index


def _respond(handler: Callable[[Any], Answer], argument: Any) -> Response:
    """The handler's answer; what goes wrong becomes a status and a sentence."""
    try:
        answer = handler(argument)
    except Pending as pending:
        return Json({"pending": pending.job.as_dict()}, 202)
    except ChangedMeanwhile as error:
        return Json({"error": str(error)}, 409)
    except DeepClusterError as error:
        return Json({"error": " ".join(str(error).split())}, 400)
    except (OverflowError, RecursionError):
        return Json({"error": "A number of this request is too large, or it is nested too deep."}, 400)
    if isinstance(answer, bytes):
        return Response(answer, media_type="application/octet-stream")
    return answer if isinstance(answer, Response) else Json(answer)


def _get(handler: Callable[[Request], Answer], lock: AbstractContextManager[Any], request: Request) -> Response:
    with lock:
        return _respond(handler, request)


async def _post(handler: Callable[[bytes], Answer], request: Request) -> Response:  # bodies are read in coroutines
    return await run_in_threadpool(_respond, handler, await request.body())


def _integer(request: Request, name: str, default: int) -> int:
    return _number(request.query_params.get(name, str(default)), name)


def _slice(request: Request, limit: int = 100) -> slice:
    """Which part of a list is asked for."""
    start = _integer(request, "offset", 0)
    return slice(start, start + min(_integer(request, "limit", limit), PAGE))


def _number(text: str, what: str) -> int:
    """A number of an address; one of thousands of digits is refused."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise DeepClusterError(f"{what} is chosen by its number.")
    return int(text)


def _cluster(request: Request) -> int:
    text = request.path_params["cluster"]
    return -1 if text == "-1" else _number(text, "A cluster")


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = parse_json(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DeepClusterError("A JSON object is needed.")
    return found
