"""The explorer over HTTP on 127.0.0.1: a page, its files, and JSON. Images are served by index only."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from deepcluster.data.naming import printable
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.explore import history, layout, thumbs
from deepcluster.explore.duplicates import Twins
from deepcluster.explore.explorer import EXPORTS, Explorer, Pending
from deepcluster.explore.guard import guard
from deepcluster.explore.journal import ChangedMeanwhile
from deepcluster.reading import parse_json

if TYPE_CHECKING:
    import uvicorn

ADDRESS = "127.0.0.1"
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
    """The handlers, one method each; `routes` says which address each answers.

    Args:
        explorer: the run that is explored.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.catalog, self.lock = explorer, explorer.catalog, explorer.lock
        # No path of a request ever reaches the file system: these are the files there are.
        self.files = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in KINDS}

    def routes(self) -> list[Route]:
        """Address -> handler."""
        get: dict[str, Callable[[Request], Answer]] = {
            "/": self.page,
            "/static/{name}": self.static,
            "/thumb/{index}": self.thumb,
            "/image/{index}": lambda request: self._picture(request, self.explorer.thumbs.full, 0),
            "/api/state": lambda request: self.explorer.state(),
            "/api/clusters": self.clusters,
            "/api/clusters/{cluster}": self.cluster,
            "/api/clusters/{cluster}/members": self.members,
            "/api/clusters/{cluster}/nearest": self.nearest,
            "/api/images/{index}": self.image,
            "/api/images/{index}/neighbors": self.neighbors,
            "/api/map/groups": self.map_groups,
            "/api/map/{name}": self.map_positions,
            "/api/outliers": self.outliers,
            "/api/duplicates": self.duplicates,
            "/api/selection": lambda request: self.explorer.images(
                np.flatnonzero(self.explorer.groups.selected), _slice(request)
            ),
            "/api/history": self.history,
            "/api/history/{epoch}": self.epoch,
            "/api/exports/{kind}": self.exported,
        }
        post: dict[str, Callable[[bytes], Answer]] = {
            "/api/undo": lambda content: self.step(content, "undo"),
            "/api/redo": lambda content: self.step(content, "redo"),
            "/api/edits": self.edit,
            "/api/export": self.export,
            "/api/photo": lambda content: self.explorer.photo(content, 60),
        }
        return [
            *(Route(path, partial(_get, handler), methods=["GET"]) for path, handler in get.items()),
            *(Route(path, partial(_post, handler), methods=["POST"]) for path, handler in post.items()),
        ]

    def page(self, request: Request) -> Answer:
        """The page itself."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)
        run = self.explorer.run
        text = environment.get_template("explore.html").render(
            mark=self.explorer.mark, title=run.folder.name or str(run.folder), preset=run.config["preset"],
            epochs=len(run.metrics), folder=str(self.explorer.folder),
        )  # fmt: skip
        return Response(printable(text), media_type="text/html")

    def static(self, request: Request) -> Answer:
        """A file of the page."""
        path = self.files.get(request.path_params["name"])
        if path is None:
            return Json({"error": "There is no such file."}, 404)
        return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})

    def thumb(self, request: Request) -> Answer:
        """A square thumbnail."""
        side = _integer(request, "side", thumbs.SIDES[0])
        if side not in thumbs.SIDES:
            raise DeepClusterError(f"Thumbnails have a side of {' or '.join(map(str, thumbs.SIDES))} pixels.")
        return self._picture(request, lambda index: self.explorer.thumbs.get(index, side), side)

    def _picture(self, request: Request, make: Callable[[int], bytes], side: int) -> Response:
        index = self._index(request)
        tag = f'"{self.explorer.mark}-{index}-{side}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**FOREVER, "etag": tag})
        try:
            content = make(index)
        except BadImage:
            return Response(thumbs.placeholder(), media_type="image/png", headers={"x-image": "missing"})
        return Response(content, media_type=thumbs.kind(content), headers={**FOREVER, "etag": tag})

    def clusters(self, request: Request) -> Answer:
        """A page of the table."""
        query, catalog = request.query_params, self.catalog
        with self.lock:
            found = catalog.rows(
                sort=query.get("sort", "size"),
                descending=query.get("descending", "1") == "1",
                search=query.get("search", "")[:200],
                hidden=query.get("hidden", "0") == "1",
                part=_slice(request),
            )
            count = min(_integer(request, "nearest", 0), 10)
            nearest = catalog.nearest([row["id"] for row in found["rows"]], count) if count else {}
            for row in found["rows"]:
                row["cover"] = catalog.cover(row["id"])
                row["nearest"] = [catalog.row(other) for other, _ in nearest.get(row["id"], ())]
        return found

    def cluster(self, request: Request) -> Answer:
        """One cluster, with its classes."""
        with self.lock:
            return self.catalog.row(_cluster(request)) | {"classes": self.catalog.classes_in(_cluster(request))}

    def nearest(self, request: Request) -> Answer:
        """The clusters nearest to one."""
        number, catalog = _cluster(request), self.catalog
        with self.lock:
            catalog.row(number)
            near = catalog.nearest([number], min(_integer(request, "limit", 12), 50))[number]
            return {
                "clusters": [
                    {**catalog.row(other), "apart": round(distance, 4), "cover": catalog.cover(other)}
                    for other, distance in near
                ]
            }

    def members(self, request: Request) -> Answer:
        """A page of a cluster's images."""
        with self.lock:
            index = self.catalog.members(_cluster(request), farthest=request.query_params.get("order") == "far")
            return self.explorer.images(index, _slice(request))

    def image(self, request: Request) -> Answer:
        """One image, with its cluster's name and, where it cannot be read, the reason."""
        index = self._index(request)
        reason = ""
        try:
            self.explorer.thumbs.read(index, 8)
        except BadImage as error:
            reason = str(error)
        with self.lock:
            found = self.explorer.image(index)
            return {**found, "name": self.explorer.groups.name(found["cluster"]), "reason": reason}

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

    def map_groups(self, request: Request) -> Answer:
        """(N,) little-endian int32, the cluster of each image; -1 = none, -2 = hidden."""
        groups = self.explorer.groups
        with self.lock:
            return np.where(np.isin(groups.group, list(groups.hidden)), -2, groups.group).astype("<i4").tobytes()

    def outliers(self, request: Request) -> Answer:
        """A page of the images that are farthest from their center for their cluster."""
        with self.lock:
            index, score = self.catalog.outliers()
            return self.explorer.images(index, _slice(request), score=score)

    def duplicates(self, request: Request) -> Answer:
        """A page of groups of near-duplicates."""
        try:
            least = float(request.query_params.get("similarity", "0.98"))
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

    def history(self, request: Request) -> Answer:
        """The curves, and the epochs whose clusters are known."""
        rows = self.explorer.run.metrics
        kept = {*history.kept_epochs(self.explorer.run.folder), *(row["epoch"] for row in rows[-1:])}
        return {"rows": rows, "kept": sorted(kept)}

    def epoch(self, request: Request) -> Answer:
        """Cluster sizes of an epoch, where its clusters were kept."""
        epoch = _number(request.path_params["epoch"], "An epoch")
        run, last = self.explorer.run, self.explorer.run.assignment
        file = history.kept_epochs(run.folder).get(epoch)
        found = None if file is None else history.clusters_of(run, file)
        if found is None and epoch in (row["epoch"] for row in run.metrics[-1:]):
            found = last
        return {"epoch": epoch, "known": found is not None} | ({} if found is None else history.sizes(found, last))

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

    def step(self, content: bytes, which: Literal["undo", "redo"]) -> Answer:
        """Undo or redo the edit that the page knows as the last."""
        revision = _object(content).get("revision")
        if revision is not None and type(revision) is not int:
            raise DeepClusterError("A revision is a whole number.")
        with self.lock:
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


def _get(handler: Callable[[Request], Answer], request: Request) -> Response:
    return _respond(handler, request)


async def _post(handler: Callable[[bytes], Answer], request: Request) -> Response:  # bodies are read in coroutines
    return await run_in_threadpool(_respond, handler, await request.body())


def create_app(explorer: Explorer, token: str) -> BaseHTTPMiddleware:
    """The application; every request passes the guard first."""
    return BaseHTTPMiddleware(Starlette(routes=Pages(explorer).routes()), partial(guard, token))


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 = any that is free.

    Raises:
        DeepClusterError: the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise DeepClusterError(f"--port {port} is no port: choose one from 1024 to 65535, or 0 for any.")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise DeepClusterError(
            f"Port {port} of {ADDRESS} cannot be had ({error.strerror}): choose another by --port, or --port 0 for any."
        ) from error
    return found


def serve(explorer: Explorer, listening: socket.socket, started: Callable[[uvicorn.Server, str], None]) -> None:
    """Answers until Ctrl-C or SIGTERM; `started` gets the address, once requests are answered. The token is in it, new
    with each start, and nowhere else."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    settings = uvicorn.Config(
        create_app(explorer, token), log_level="warning", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=2, http="h11", ws="none",
    )  # fmt: skip
    server = uvicorn.Server(settings)

    def tell() -> None:
        while not server.started and not server.should_exit:
            threading.Event().wait(0.02)
        if server.started:
            started(server, f"http://{ADDRESS}:{listening.getsockname()[1]}/?token={token}")

    threading.Thread(target=tell, daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    finally:
        explorer.close()


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
