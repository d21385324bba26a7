"""A served explorer, and a small client that can lie about who it is."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

from deepcluster.explore.explorer import Explorer
from deepcluster.explore.server import listen, serve


class Site:
    """Asks the server at an address that it told, with its token."""

    def __init__(self, entry: str) -> None:
        self.entry = entry
        self.address, self.token = entry.split("?token=")
        self.port = int(self.address.split(":")[2].rstrip("/"))

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content, of a path that is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            given = {"Host": f"127.0.0.1:{self.port}", "X-Token": self.token, **(headers or {})}
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            if body is not None and "Content-Length" not in given:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """A JSON answer, waited for where it is being computed."""
        for _ in range(600):
            status, _, content = self.ask("GET", path)
            if status != 202:
                assert status == 200, (path, status, content)
                return json.loads(content)
            threading.Event().wait(0.1)
        raise AssertionError(f"{path} is not ready after a minute")

    def post(self, path: str, value: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON answer, with the token; bytes are sent as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value if value is not None else {}).encode()
        status, _, content = self.ask("POST", path, body, headers)
        return status, json.loads(content)


@contextlib.contextmanager
def served(explorer: Explorer) -> Iterator[Site]:
    """The explorer on a free port, until the end of the block."""
    ready = threading.Event()
    told: list[Any] = []
    listening = listen(0)

    def started(server: Any, address: str) -> None:
        told.extend((server, address))
        ready.set()

    thread = threading.Thread(target=serve, args=(explorer, listening, started), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Site(told[1])
    finally:
        told[0].should_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()
