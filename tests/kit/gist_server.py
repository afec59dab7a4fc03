"""GitHub's gists on 127.0.0.1: what the API answers for one, raw files, redirects and refusals."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class GistServer(http.server.ThreadingHTTPServer):
    """Answers by path with `(status, headers, body)`; the requests are kept in `asked` with their headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, Mapping[str, str], bytes]] = {}
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.on_request: Callable[[str], None] = lambda path: None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gist(self, gist_id: str, files: Mapping[str, str | dict[str, Any]], **more: Any) -> None:
        """A gist with these files; a dict is GitHub's own description of one."""
        described = {
            name: {"filename": name, "size": len(entry.encode()), "truncated": False, "content": entry}
            if isinstance(entry, str)
            else entry
            for name, entry in files.items()
        }
        body = json.dumps({"id": gist_id, "truncated": False, "files": described, **more}).encode()
        self.answers[f"/gists/{gist_id}"] = (200, {"Content-Type": "application/json"}, body)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: GistServer

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers.items())))
        self.server.on_request(self.path)
        status, headers, body = self.server.answers.get(self.path, (404, {}, b"{}"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def gists() -> Iterator[GistServer]:
    """A running GistServer."""
    with GistServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
