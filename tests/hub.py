"""A server that answers as the Hugging Face hub does, for repositories of models and of data sets."""

from __future__ import annotations

import base64
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

Files = dict[str, "Path | bytes"]


class Hub:
    """What is on it, and what was said to it.

    Attributes:
        repositories: "models/we/photos" or "datasets/we/photos" -> revision -> name -> content.
        said: the JSON of each repository that was made, and of each commit's header.
        tokens: those that came with them.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.said: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.address = ""

    def __getitem__(self, name: str) -> dict[str, Files]:
        return self.repositories.setdefault(name, {})

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Body and headers of what is asked for; None = not there."""
        for name, revisions in self.repositories.items():
            for number, (revision, files) in enumerate(revisions.items()):
                commit = f"{number}{zlib.crc32(repr(sorted(files.items())).encode()):039d}"
                if path == f"/api/{name}/revision/{revision}":
                    names = [{"rfilename": file} for file in files]
                    about = {"id": name.partition("/")[2], "sha": commit, "siblings": names, "private": False}
                    return json.dumps(about).encode(), {"Content-Type": "application/json"}
                if path == f"/api/{name}/tree/{commit}":
                    listed = [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in files]
                    return json.dumps(listed).encode(), {"Content-Type": "application/json"}
                place = f"/{name.removeprefix('models/')}/resolve/{commit}/"
                if path.startswith(place) and (file := path.removeprefix(place)) in files:
                    found = files[file]
                    body = found if isinstance(found, bytes) else found.read_bytes()
                    return body, {"ETag": f'"{zlib.crc32(body)}"', "X-Repo-Commit": commit}
        return (b"", {}) if path == "/" else None

    def take(self, path: str, body: bytes) -> dict[str, Any] | None:
        """The answer to what is sent: a repository to make, files to announce, a commit. None = refused."""
        if path == "/api/validate-yaml":  # of a card
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked["organization"], asked["name"])))
            self.said.append(asked)
            self[f"models/{name}"].setdefault("main", {})
            return {"url": f"{self.address}/{name}"}
        name, _, rest = path.removeprefix("/api/").rpartition("/main")[0].rpartition("/")
        if name not in self.repositories:
            return None
        if rest == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            return {"files": modes}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self[name]["main"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                self.said.append(line["value"])
        return {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for its own while this lasts; what it downloads goes to `cache`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self._send(hub.answer(self.path.replace("%2F", "/").partition("?")[0]))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.tokens.append(self.headers["Authorization"])
            answer = hub.take(self.path.partition("?")[0], body)
            self._send(None if answer is None else (json.dumps(answer).encode(), {"Content-Type": "application/json"}))

        def _send(self, answer: tuple[bytes, dict[str, str]] | None) -> None:
            known = any(f"/{name.partition('/')[2]}/" in self.path for name in hub.repositories)
            missing = {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}
            body, headers = answer or (b"", missing)
            self.send_response(404 if answer is None else 200)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub
    server.shutdown()
    server.server_close()
