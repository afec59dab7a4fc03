"""A Hub of our own on 127.0.0.1: what `datasets` and huggingface_hub ask of one to read a dataset or a model, and its refusals."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

MAIN, PARQUET = "main", "refs/convert/parquet"
#: An address at which nobody answers: the discard port.
NOWHERE = "http://127.0.0.1:9"
#: branch -> path in the repository -> content
Repository = Mapping[str, Mapping[str, bytes]]


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `repositories`; a name in `refusals` is answered with that status and X-Error-Code."""

    def __init__(self, repositories: Mapping[str, Repository], refusals: Mapping[str, tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.refusals = repositories, refusals
        self.asked: list[str] = []
        self._failures: list[int] = []
        self._cuts: dict[str, int] = {}

    @contextmanager
    def failing(self, status: int, times: int) -> Iterator[None]:
        """The next `times` requests are answered with this status."""
        self._failures = [status] * times
        try:
            yield
        finally:
            self._failures = []

    @contextmanager
    def cutting(self, path: str, after: int) -> Iterator[None]:
        """The line breaks whenever a file has been sent up to this byte."""
        self._cuts[path] = after
        try:
            yield
        finally:
            del self._cuts[path]

    def next_failure(self) -> int | None:
        """The status that the next request is to be answered with, if it is to fail."""
        return self._failures.pop() if self._failures else None

    def cut_of(self, path: str) -> int | None:
        """After how many bytes of a file the line breaks."""
        return self._cuts.get(path)

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(
    repositories: Mapping[str, Repository] | None = None, refusals: Mapping[str, tuple[int, str]] | None = None
) -> Iterator[HubServer]:
    """A running HubServer."""
    with HubServer(repositories or {}, refusals or {}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def asked_here(
    repositories: Mapping[str, Repository], refusals: Mapping[str, tuple[int, str]] | None = None, cache: Path | None = None
) -> Iterator[HubServer]:
    """A HubServer that huggingface_hub asks in this process. What `datasets` asks needs a process of its own.

    Args:
        cache: folder of the download cache; default: the one that all tests share.
    """
    with serving(repositories, refusals) as server, hub_at(server.address, cache):
        yield server


@contextmanager
def hub_at(address: str, cache: Path | None = None) -> Iterator[None]:
    """huggingface_hub asks at `address` in this process."""
    from huggingface_hub import close_session, constants, hf_api

    usual = constants.ENDPOINT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        # Clients that libraries made earlier, and keep, have a copy of the address; those made now must not keep this one.
        endpoint = property(lambda client: address, lambda client, value: vars(client).update(endpoint=usual))
        patch.setattr(hf_api.HfApi, "endpoint", endpoint, raising=False)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        if cache is not None:
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        try:
            yield
        finally:
            close_session()  # its open connection keeps a thread of the server


def _revision(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()  # noqa: S324 - git's own


def _about(repository: str, files: Mapping[str, bytes], branch: str) -> dict[str, Any]:
    licence = re.search(rb"^license: (.+)$", files.get("README.md", b""), re.MULTILINE)
    return {
        "id": repository, "sha": _revision(branch), "private": False, "gated": False, "tags": [], "likes": 0,
        "downloads": 0, "siblings": [{"rfilename": path, "size": len(content)} for path, content in files.items()],
        "cardData": {"license": licence[1].decode()} if licence else None,
    }  # fmt: skip


def _folders(files: Mapping[str, bytes]) -> set[str]:
    return {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}


def _below(files: Mapping[str, bytes], folder: str, deep: bool) -> set[str]:
    """Paths in `folder`, and with `deep` in the folders in it."""
    start = f"{folder}/" if folder else ""
    paths = {path for path in (*files, *_folders(files)) if path.startswith(start)}
    return paths if deep else {path for path in paths if "/" not in path.removeprefix(start)}


def _entries(files: Mapping[str, bytes], paths: set[str]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(files[path]), "oid": _revision(path)}
        if path in files
        else {"type": "directory", "path": path, "oid": _revision(path)}
        for path in sorted(paths & {*files, *_folders(files)})
    ]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urllib.parse.urlsplit(self.path)
        path = address.path
        self.server.asked.append(f"{self.command} {path}")
        if status := self.server.next_failure():
            return self._send(b"{}", status, {})
        bare = path.removeprefix("/api").removeprefix("/datasets/").removeprefix("/models/").removeprefix("/")
        owner, _, rest = bare.partition("/")
        name, _, rest = rest.partition("/")
        repository = f"{owner}/{name}"
        if repository in self.server.refusals:
            status, code = self.server.refusals[repository]
            return self._send(b"{}", status, {"X-Error-Code": code})
        if repository not in self.server.repositories:
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        kind, _, rest = rest.partition("/")
        revision, _, file = rest.partition("/")
        branches = self.server.repositories[repository]
        wanted = urllib.parse.unquote(revision) or MAIN
        branch = next((one for one in branches if wanted in (one, _revision(one))), None)
        if branch is None:
            return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        if kind == "resolve":
            return self._file(branches[branch], urllib.parse.unquote(file), branch)
        if kind in ("", "revision"):
            return self._json(_about(repository, branches[branch], branch))
        if kind == "paths-info":
            asked = json.loads(body) if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())
            return self._json(_entries(branches[branch], {path.strip("/") for path in asked["paths"]}))
        deep = "recursive=true" in address.query.lower()
        return self._json(_entries(branches[branch], _below(branches[branch], urllib.parse.unquote(file), deep)))

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

    def _file(self, files: Mapping[str, bytes], path: str, branch: str) -> None:
        found = {"X-Repo-Commit": _revision(branch)}
        if path not in files:
            return self._send(b"", 404, {**found, "X-Error-Code": "EntryNotFound"})
        content, found["ETag"] = files[path], f'"{_revision(path)}"'
        cut = self.server.cut_of(path)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            found["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self._send(part, 206, found, max(0, cut - int(first)) if cut is not None else None)
        return self._send(content, 200, found, cut)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, body: bytes, status: int, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # one that is kept open keeps a thread, which a test must not leave behind
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.close_connection = self.close_connection or cut is not None

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr."""
