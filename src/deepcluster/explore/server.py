"""The explorer's server on 127.0.0.1, which answers this machine's browser, this page, and who has the address's token.

Whoever opens `/?token=...` gets the token as a cookie, which goes with all that the page asks for; programs send it as
`X-Token`. A page of another site cannot reach the explorer under another name (Host), cannot send it anything (Origin,
SameSite), and cannot show what it serves (headers). Other users of the machine do not know the token.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deepcluster.errors import DeepClusterError
from deepcluster.explore.explorer import Explorer
from deepcluster.explore.pages import Pages

if TYPE_CHECKING:
    import uvicorn

ADDRESS = "127.0.0.1"
HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::(\d{1,5}))?")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
LONGEST = 32 << 20
"""Bytes of a request at most: a photo, or the indices of a large selection."""


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 = any that is free. A DeepClusterError where the port is taken or not allowed."""
    try:
        return socket.create_server((ADDRESS, port), backlog=128)
    except OverflowError:
        raise DeepClusterError(f"--port {port} is no port: choose one from 1024 to 65535, or 0 for any.") from None
    except OSError as error:
        raise DeepClusterError(
            f"Port {port} of {ADDRESS} cannot be had ({os.strerror(error.errno or 0)}): choose another by --port, or"
            " --port 0 for any."
        ) from error


def serve(explorer: Explorer, listening: socket.socket, started: Callable[[uvicorn.Server, str], None]) -> None:
    """Answers until Ctrl-C or SIGTERM; `started` gets the server and its address, once it answers. The token is in the
    address, new with each start, and nowhere else."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    settings = uvicorn.Config(
        create_app(explorer, token), log_level="warning", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=2, http="h11", ws="none",
    )  # fmt: skip
    server = uvicorn.Server(settings)

    def tell() -> None:  # in a thread, as a browser in a terminal stays
        while not server.started and not server.should_exit:
            threading.Event().wait(0.02)
        if server.started:  # from now on signals stop it in order
            started(server, f"http://{ADDRESS}:{listening.getsockname()[1]}/?token={token}")

    threading.Thread(target=tell, daemon=True).start()
    try:
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    finally:
        explorer.close()


def create_app(explorer: Explorer, token: str) -> BaseHTTPMiddleware:
    """The application; every request passes the guard first."""
    return BaseHTTPMiddleware(Starlette(routes=Pages(explorer).routes()), partial(guard, token))


async def guard(token: str, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Lets `answer` answer a request that is allowed; see the file's docstring."""
    refused = refusal(request, token)
    response = await answer(request) if refused is None else JSONResponse({"error": refused[1]}, refused[0])
    response.headers.update(HEADERS)
    response.headers.setdefault("cache-control", "no-store")
    if refused is None and request.url.path == "/" and "token" in request.query_params:
        response.set_cookie(_cookie(request), token, httponly=True, samesite="strict")
    return response


def _cookie(request: Request) -> str:
    """The name of the cookie: browsers keep one jar for all ports of a host."""
    host = HOST.fullmatch(request.headers.get("host", ""))
    return f"deepcluster-{host[1] or 80}" if host else ""


def refusal(request: Request, token: str) -> tuple[int, str] | None:
    """Status and reason if a request is refused."""
    headers, path = request.headers, request.url.path
    if not _cookie(request):
        return 421, "This server answers to 127.0.0.1 and localhost only."
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers['host']}":
        return 403, "Requests from other pages are refused."
    if path != "/" and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "Requests from other pages are refused."
    reads = request.method in ("GET", "HEAD")
    given = [headers.get("x-token", "")]
    if path == "/":
        given.append(request.query_params.get("token", ""))
    if reads or origin is not None:  # a browser says of every change which page asks for it
        given.append(request.cookies.get(_cookie(request), ""))
    if not any(secrets.compare_digest(one.encode(), token.encode()) for one in given):
        return 403, "This needs the token of this start: open the address that `deepcluster explore` printed."
    if not reads:
        length = headers.get("content-length", "")
        if not length.isdigit():
            return 411, "The request must state its length."
        if int(length) > LONGEST:
            return 413, f"The request is too large: at most {LONGEST >> 20} MiB are accepted."
    return None
