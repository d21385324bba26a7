"""The explorer over HTTP on 127.0.0.1: a page, its files, and small JSON answers. Images are served by index only."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from deepcluster.errors import DeepClusterError
from deepcluster.explore import exports, thumbs
from deepcluster.explore.explorer import EXPORTS, Explorer, Pending
from deepcluster.explore.guard import Guard
from deepcluster.explore.journal import ChangedMeanwhile

if TYPE_CHECKING:
    import uvicorn

ADDRESS = "127.0.0.1"
PORT = 8765
PAGE = 500
"""Images or clusters of one answer at most."""
STATIC = Path(__file__).parent / "static"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}

Answer = Callable[["Pages", Request], Response]


def answered(answer: Answer) -> Answer:
    """Turns what goes wrong into a status and a sentence."""

    @wraps(answer)
    def safe(self: Pages, request: Request) -> Response:
        try:
            return answer(self, request)
        except Pending as pending:
            return JSONResponse({"pending": pending.job.as_dict()}, 202)
        except ChangedMeanwhile as error:
            return JSONResponse({"error": str(error)}, 409)
        except DeepClusterError as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 400)
        except (OverflowError, RecursionError):
            return JSONResponse({"error": "A number of this request is too large, or it is nested too deep."}, 400)

    return safe


class Pages:
    """The answers, one method each.

    Args:
        explorer: what is asked.
        token: what the page needs for changes.
    """

    def __init__(self, explorer: Explorer, token: str) -> None:
        self.explorer, self.token = explorer, token
        # No path of a request ever reaches the file system: these are the files there are.
        self.files = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in KINDS}

    def routes(self) -> list[Route]:
        """Address -> answer."""
        get: dict[str, Any] = {
            "/": self.page,
            "/static/{name}": self.static,
            "/thumb/{index}": self.thumb,
            "/image/{index}": self.whole,
            "/api/state": self.state,
            "/api/clusters": self.clusters,
            "/api/clusters/{cluster}": self.cluster,
            "/api/clusters/{cluster}/members": self.members,
            "/api/clusters/{cluster}/nearest": self.nearest,
            "/api/images/{index}": self.image,
            "/api/images/{index}/neighbors": self.neighbors,
            "/api/map/groups": self.map_groups,
            "/api/map/{name}": self.map,
            "/api/outliers": self.outliers,
            "/api/duplicates": self.duplicates,
            "/api/selection": self.selection,
            "/api/history": self.history,
            "/api/history/{epoch}": self.history_of,
            "/api/exports/{kind}": self.exported,
        }
        return [
            *(Route(path, answer, methods=["GET"]) for path, answer in get.items()),
            # These read what was sent, which Starlette does in coroutines.
            Route("/api/undo", self.undo, methods=["POST"]),
            Route("/api/redo", self.redo, methods=["POST"]),
            Route("/api/edits", self.edits, methods=["POST"]),
            Route("/api/export", self.export, methods=["POST"]),
            Route("/api/photo", self.photo, methods=["POST"]),
        ]

    @answered
    def page(self, request: Request) -> Response:
        """The page itself, with the token."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)
        run = self.explorer.run
        text = environment.get_template("explore.html").render(
            token=self.token, mark=self.explorer.mark, title=run.folder.name or str(run.folder),
            preset=run.config["preset"], epochs=len(run.metrics), folder=str(self.explorer.place),
        )  # fmt: skip
        return Response(text, media_type="text/html")

    @answered
    def static(self, request: Request) -> Response:
        """A file of the page."""
        path = self.files.get(request.path_params["name"])
        if path is None:
            return JSONResponse({"error": "There is no such file."}, 404)
        return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})

    @answered
    def thumb(self, request: Request) -> Response:
        """A square thumbnail."""
        side = _integer(request, "side", thumbs.SIDES[0])
        if side not in thumbs.SIDES:
            raise DeepClusterError(f"Thumbnails have a side of {' or '.join(map(str, thumbs.SIDES))} pixels.")
        return self._picture(request, lambda index: self.explorer.thumbs.get(index, side), side)

    @answered
    def whole(self, request: Request) -> Response:
        """An image in full, or shrunk where it is very large."""
        return self._picture(request, self.explorer.thumbs.whole, 0)

    def _picture(self, request: Request, make: Callable[[int], bytes | None], side: int) -> Response:
        index = self._index(request)
        tag = f'"{self.explorer.mark}-{index}-{side}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**FOREVER, "etag": tag})
        content = make(index)
        if content is None:
            return Response(thumbs.placeholder(), media_type="image/png", headers={"x-image": "missing"})
        return Response(content, media_type=thumbs.kind(content), headers={**FOREVER, "etag": tag})

    @answered
    def state(self, request: Request) -> Response:
        """What surrounds everything."""
        return JSONResponse(self._state())

    def _state(self) -> dict[str, Any]:
        with self.explorer.lock:
            return self.explorer.state() | {"revision": self.explorer.journal.revision}

    @answered
    def clusters(self, request: Request) -> Response:
        """A page of the table."""
        query = request.query_params
        with self.explorer.lock:
            found = self.explorer.catalog.rows(
                sort=query.get("sort", "size"),
                descending=query.get("descending", "1") == "1",
                search=query.get("search", "")[:200],
                hidden=query.get("hidden", "0") == "1",
                offset=_offset(request),
                limit=_limit(request),
            )
            near = min(_integer(request, "nearest", 0), 10)
            apart = self.explorer.catalog.nearest([row["id"] for row in found["rows"]], near) if near else {}
            for row in found["rows"]:
                row["cover"] = self.explorer.catalog.cover(row["id"])
                row["nearest"] = [self.explorer.catalog.row(other) for other, _ in apart.get(row["id"], ())]
        return JSONResponse(found)

    @answered
    def cluster(self, request: Request) -> Response:
        """One cluster, with its classes."""
        number, catalog = _cluster(request), self.explorer.catalog
        with self.explorer.lock:
            found = catalog.row(number) | {"classes": catalog.classes_in(number)}
        return JSONResponse(found)

    @answered
    def nearest(self, request: Request) -> Response:
        """The clusters nearest to one."""
        with self.explorer.lock:
            number, catalog = _cluster(request), self.explorer.catalog
            catalog.row(number)
            near = catalog.nearest([number], min(_limit(request, 12), 50))[number]
            found = [
                {**catalog.row(other), "apart": round(apart, 4), "cover": catalog.cover(other)} for other, apart in near
            ]
        return JSONResponse({"clusters": found})

    @answered
    def members(self, request: Request) -> Response:
        """A page of a cluster's images."""
        farthest = request.query_params.get("order") == "far"
        with self.explorer.lock:
            page = self.explorer.catalog.members(
                _cluster(request), farthest=farthest, offset=_offset(request), limit=_limit(request)
            )
        return JSONResponse(self.explorer.paths(page))

    @answered
    def image(self, request: Request) -> Response:
        """One image."""
        return JSONResponse(self.explorer.image(self._index(request)))

    @answered
    def neighbors(self, request: Request) -> Response:
        """The images most like one."""
        return JSONResponse(self.explorer.neighbors(self._index(request), max(1, _limit(request, 60))))

    @answered
    def map(self, request: Request) -> Response:
        """(N, 2) little-endian int16."""
        return Response(
            self.explorer.place_of(request.path_params["name"]).tobytes(), media_type="application/octet-stream"
        )

    @answered
    def map_groups(self, request: Request) -> Response:
        """(N,) little-endian int32, the cluster of each image; -1 = none, -2 = hidden."""
        with self.explorer.lock:
            groups = self.explorer.groups
            now = groups.group.astype("<i4")
            if groups.hidden:
                now[np.isin(groups.group, list(groups.hidden))] = -2
        return Response(now.tobytes(), media_type="application/octet-stream")

    @answered
    def outliers(self, request: Request) -> Response:
        """A page of the strangest images."""
        with self.explorer.lock:
            page = self.explorer.catalog.outliers(_offset(request), _limit(request))
        return JSONResponse(self.explorer.paths(page))

    @answered
    def duplicates(self, request: Request) -> Response:
        """A page of groups of near-duplicates."""
        try:
            least = float(request.query_params.get("similarity", "0.98"))
        except ValueError:
            raise DeepClusterError("The similarity is a number from 0 to 1.") from None
        return JSONResponse(self.explorer.near_duplicates(least, _offset(request), _limit(request, 20)))

    @answered
    def selection(self, request: Request) -> Response:
        """A page of the selected images."""
        with self.explorer.lock:
            index = np.flatnonzero(self.explorer.groups.selected)
            page = self.explorer.catalog.page(index, _offset(request), _limit(request))
        return JSONResponse(self.explorer.paths(page))

    @answered
    def history(self, request: Request) -> Response:
        """The curves."""
        return JSONResponse(self.explorer.history())

    @answered
    def history_of(self, request: Request) -> Response:
        """One epoch."""
        return JSONResponse(self.explorer.history_of(_whole(request.path_params["epoch"], "An epoch")))

    @answered
    def exported(self, request: Request) -> Response:
        """What an export wrote, to be downloaded."""
        name = EXPORTS.get(request.path_params["kind"])
        file = self.explorer.place / "exports" / name if name else None
        if file is None or not file.is_file():
            return JSONResponse({"error": "There is no such export."}, 404)
        return FileResponse(file, filename=name)

    async def edits(self, request: Request) -> Response:
        """Makes an edit."""

        def make(content: bytes) -> Response:
            self.explorer.edit(_object(content))
            return JSONResponse(self._state())

        return await self._sent(request, make)

    async def undo(self, request: Request) -> Response:
        """Takes the last edit back, if it is the one that the page knows as the last."""
        return await self._turn(request, self.explorer.undo)

    async def redo(self, request: Request) -> Response:
        """Makes it again, likewise."""
        return await self._turn(request, self.explorer.redo)

    async def _turn(self, request: Request, turn: Callable[[int | None], str]) -> Response:
        def make(content: bytes) -> Response:
            known = _object(content).get("revision")
            if known is not None and type(known) is not int:
                raise DeepClusterError("A revision is a whole number.")
            with self.explorer.lock:
                return JSONResponse({"turned": turn(known), **self._state()})

        return await self._sent(request, make)

    async def export(self, request: Request) -> Response:
        """Begins to write an export."""

        def make(content: bytes) -> Response:
            asked = _object(content)
            out = self.explorer.export(str(asked.get("kind")), asked.get("selection") is True)
            return JSONResponse({"path": str(out), "job": self.explorer.jobs["export"].as_dict()})

        return await self._sent(request, make)

    async def photo(self, request: Request) -> Response:
        """The cluster of a picture, and what is like it."""
        return await self._sent(request, lambda content: JSONResponse(self.explorer.photo(content, 60)))

    async def _sent(self, request: Request, make: Callable[[bytes], Response]) -> Response:
        from starlette.concurrency import run_in_threadpool

        content = await request.body()
        return await run_in_threadpool(answered(lambda self, request: make(content)), self, request)

    def _index(self, request: Request) -> int:
        index = _whole(request.path_params["index"], "An image")
        if index >= len(self.explorer.groups):
            raise DeepClusterError(f"There is no image {index}: indices are 0 to {len(self.explorer.groups) - 1}.")
        return index


def create_app(explorer: Explorer, token: str | None = None) -> Guard:
    """The application; every request passes the guard first."""
    token = token or secrets.token_urlsafe(24)
    return Guard(Starlette(routes=Pages(explorer, token).routes()), token)


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


def serve(explorer: Explorer, listening: socket.socket, started: Callable[[uvicorn.Server], None]) -> None:
    """Answers until Ctrl-C or SIGTERM; `started` is called once requests are answered."""
    import uvicorn

    settings = uvicorn.Config(
        create_app(explorer), log_level="warning", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=2, http="h11", ws="none",
    )  # fmt: skip
    server = uvicorn.Server(settings)

    def tell() -> None:
        while not server.started and not server.should_exit:
            threading.Event().wait(0.02)
        if server.started:
            started(server)

    threading.Thread(target=tell, daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    finally:
        explorer.close()


def export_once(explorer: Explorer, out: Path) -> tuple[str, int]:
    """Writes the clusters as they stand to `out`, for the command line; see `exports.write`."""
    source = explorer.jobs["images"].wait()
    return exports.write(out, explorer.groups, source)


def _integer(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name, str(otherwise))
    if not text.isdecimal() or len(text) > 12:
        raise DeepClusterError(f"{name} must be a whole number.")
    return int(text)


def _offset(request: Request) -> int:
    return _integer(request, "offset", 0)


def _limit(request: Request, otherwise: int = 100) -> int:
    return min(_integer(request, "limit", otherwise), PAGE)


def _whole(text: str, what: str) -> int:
    """A number of an address; one of thousands of digits is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise DeepClusterError(f"{what} is chosen by its number.")
    return int(text)


def _cluster(request: Request) -> int:
    text = request.path_params["cluster"]
    return -1 if text == "-1" else _whole(text, "A cluster")


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # no JSON, or one nested thousands of times
        found = None
    if not isinstance(found, dict):
        raise DeepClusterError("A JSON object is needed.")
    return found
