"""A Hub of our own on 127.0.0.1 that takes uploads: repositories, large files by their SHA-256, commits; with refusals."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Files from this size on are sent as large files.
LARGE = 1_000


class ReceivingHub(http.server.ThreadingHTTPServer):
    """Keeps what was pushed.

    Attributes:
        token: the one that may write; others are answered 401.
        repositories: name -> path -> content; private: name -> whether it is.
        objects: large files that were received, by SHA-256; committed or not.
        refused: part of a path -> the status that requests with it are answered with.
        asked: method and path of each request; headers: of each request.
    """

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.refused: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        """For `endpoint`."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def receiving(token: str) -> Iterator[ReceivingHub]:
    """A running ReceivingHub."""
    with ReceivingHub(token) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReceivingHub

    def do_GET(self) -> None:
        body = self._body()
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        for part, status in hub.refused.items():
            if part in path:
                return self._json({"error": "refused"}, status)
        if path.startswith("/objects/"):  # signed addresses carry no token
            hub.objects[path.rpartition("/")[2]] = body
            return self._json({})
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2]).removesuffix(".git")
        if name not in hub.repositories:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        rest = path.partition(name)[2]
        if rest.startswith("/preupload/"):
            return self._json({"files": [self._mode(name, file) for file in json.loads(body)["files"]]})
        if rest == ".git/info/lfs/objects/batch":
            return self._json({"objects": [self._object(one) for one in json.loads(body)["objects"]]})
        if rest.startswith("/commit/"):
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        about = {"id": name, "sha": "0" * 40, "private": hub.private[name], "tags": [], "siblings": []}
        return self._json(about)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - the names that http.server calls

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{name}"}
        if name in self.server.repositories:
            return self._json(url, 409)
        self.server.repositories[name] = {}
        self.server.private[name] = wanted.get("private") is True or wanted.get("visibility") == "private"
        return self._json(url)

    def _mode(self, name: str, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.server.objects:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.server.address}/objects/{wanted['oid']}"}}}

    def _commit(self, name: str, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            value = row["value"]
            if row["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                content = self.server.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.server.repositories[name][value["path"]] = content
        return self._json({"commitUrl": f"{self.server.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})

    def _json(self, value: Any, status: int = 200, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr."""
