"""Export bundles run as their users run them: by programs of their own, in an environment without this library."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

#: For processes that import torch on a loaded machine.
PATIENCE_S = 300


def clean_python(folder: Path) -> str:
    """The Python of a new virtual environment that has the installed packages, and not this repository."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (packages,) = folder.glob("lib/python*/site-packages")
    # The folders that a .pth file adds are searched, but .pth files in them are not read: no editable install comes along.
    (packages / "packages.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return str(folder / "bin" / "python")


def bare_environment(**more: str) -> dict[str, str]:
    """The environment without what leads to this repository."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **more}


def run_program(
    bundle: Path, *arguments: str, python: str = sys.executable, limit_s: int = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """A program of the bundle, run in its folder."""
    return subprocess.run(
        [python, "-B", "-W", "ignore", *arguments],
        cwd=bundle, env=bare_environment(), capture_output=True, text=True, timeout=limit_s,
    )  # fmt: skip


class Client:
    """Calls a server that runs on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and answer; JSON is parsed. `body`: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            raw = answer.read()
            plain = "json" not in (answer.getheader("Content-Type") or "")
            return answer.status, raw.decode() if plain else json.loads(raw)
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """A POST."""
        return self.call("POST", path, body)


@contextmanager
def serving(bundle: Path, python: str = sys.executable, command: Sequence[str] = (), **limits: str) -> Iterator[Client]:
    """The bundle's server on a free port of its own choice; stopped with SIGTERM, after which it must end by itself."""
    arguments = [*(command or ("serve.py", "--host", "127.0.0.1")), "--port", "0"]
    process = subprocess.Popen(
        [python, "-B", "-W", "ignore", *arguments],
        cwd=bundle, env=bare_environment(**limits), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        if "listening on" not in line:
            raise AssertionError(f"the server did not start: {line}{process.communicate(timeout=PATIENCE_S)[1]}")
        yield Client(int(line.rpartition(":")[2]))
        assert process.poll() is None, "the server died"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, -signal.SIGTERM), f"the server ended with {process.returncode}"
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
