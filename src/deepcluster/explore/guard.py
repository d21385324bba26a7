"""Access control: requests of this machine's browser from this page only, by who knows the address with its token.

Whoever opens `/?token=...` gets the token as a cookie, which goes with all that the page asks for; programs send it as
`X-Token`. A page of another site cannot reach the explorer under another name (Host), cannot send it anything (Origin,
SameSite), and cannot show what it serves (headers). Other users of the machine do not know the token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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


async def guard(token: str, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answers a request if it is allowed; see the file's docstring.

    Args:
        token: what the address, the cookie or `X-Token` must hold.
        answer: called with the requests that are allowed.
    """
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
