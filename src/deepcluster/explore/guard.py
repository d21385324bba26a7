"""Access control: requests of this machine's browser from this page only; changes need the page's token.

A page of another site cannot reach the explorer under another name (Host), cannot send it anything (Origin, token),
and cannot show what it serves (headers).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

HOSTS = ("127.0.0.1", "localhost")
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


async def guard(token: str, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answers a request if it is allowed; see the file's docstring.

    Args:
        token: what every request but GET and HEAD must carry as `X-Token`.
        answer: called with the requests that are allowed.
    """
    refused = refusal(request.method, request.url.path, request.headers, token)
    response = await answer(request) if refused is None else JSONResponse({"error": refused[1]}, refused[0])
    response.headers.update(HEADERS)
    response.headers.setdefault("cache-control", "no-store")
    return response


def refusal(method: str, path: str, headers: Headers, token: str) -> tuple[int, str] | None:
    """Status and reason if a request is refused."""
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
        return 421, "This server answers to 127.0.0.1 and localhost only."
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return 403, "Requests from other pages are refused."
    if path != "/" and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "Requests from other pages are refused."
    if method not in ("GET", "HEAD"):
        if not secrets.compare_digest(headers.get("x-token", "").encode(), token.encode()):
            return 403, "The page is from an earlier start of the explorer: reload it."
        length = headers.get("content-length", "")
        if not length.isdigit():
            return 411, "The request must state its length."
        if int(length) > LONGEST:
            return 413, f"The request is too large: at most {LONGEST >> 20} MiB are accepted."
    return None
