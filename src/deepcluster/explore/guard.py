"""Access control: requests of this machine's browser from this page only; changes need the page's token.

A page of another site cannot reach the explorer under another name (Host), cannot send it anything (Origin, token),
and cannot show what it serves (headers).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

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

Message = MutableMapping[str, Any]


class Guard:
    """Wraps an application; see the file's docstring.

    Args:
        app: receives the requests that are allowed.
        token: what every request but GET and HEAD must carry as `X-Token`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str) -> None:
        self.app, self.token = app, token

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def armed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        refusal = self.refusal(str(scope["method"]), str(scope["path"]), Headers(scope=scope))
        if refusal is not None:
            status, why = refusal
            await JSONResponse({"error": why}, status)(scope, receive, armed)
            return
        await self.app(scope, receive, armed)

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
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
            if not secrets.compare_digest(headers.get("x-token", "").encode(), self.token.encode()):
                return 403, "The page is from an earlier start of the explorer: reload it."
            length = headers.get("content-length", "")
            if not length.isdigit():
                return 411, "The request must state its length."
            if int(length) > LONGEST:
                return 413, f"The request is too large: at most {LONGEST >> 20} MiB are accepted."
        return None
