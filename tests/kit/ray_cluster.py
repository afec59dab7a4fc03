"""A Ray cluster of the tests' own: one node on this machine with two workers, for one test module."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.2"
_START_S = 180.0
# jsonschema, which Ray imports, builds a grammar for IRIs when this package is installed (Jupyter installs it). That takes
# several seconds in each of the cluster's processes, and Ray has no use for it.
_HIDDEN = "rfc3987_syntax"


@pytest.fixture(scope="module")
def ray_url() -> Iterator[str]:
    """The URL of a running cluster. Skips where none can be started."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the cluster listens on a second loopback address, which Linux has")
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")

    folder = Path(tempfile.mkdtemp(prefix="tb-ray-"))  # its sockets have short paths only
    port, client = _free_port(), _free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--node-ip-address={HOST}", f"--port={port}",
        f"--ray-client-server-port={client}", "--include-dashboard=false", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats",
        "--object-store-memory=100000000", f"--temp-dir={folder}/t", "--dashboard-agent-listen-port=0",
        "--no-monitor", "--include-log-monitor=false",
    ]  # fmt: skip
    environment = {
        **os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_enable_worker_prestart": "0",
        "XDG_DATA_HOME": str(folder / "data"),
    }  # fmt: skip
    with _hidden_package(folder / "hidden") as hidden, open(folder / "output.txt", "wb") as output:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (hidden, os.environ.get("PYTHONPATH"))))
        head = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            if not _answers(client, head):
                # Ray gives its own processes half a minute, which a busy machine may need for something else.
                output_of = (folder / "output.txt").read_text(errors="replace")
                pytest.skip(f"Ray did not start on this machine: {output_of.strip()[-300:]}")
            yield f"ray://{HOST}:{client}"
        finally:
            _end(head, folder)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _hidden_package(folder: Path) -> Iterator[str]:
    """A folder whose module raises ImportError in place of the package, also for workers, which take over this import path."""
    folder.mkdir()
    (folder / f"{_HIDDEN}.py").write_text(f'raise ImportError("{_HIDDEN} is hidden from Ray")\n', encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield str(folder)
    finally:
        sys.path.remove(str(folder))


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """End every process of the cluster. The folder is in the command lines of the cluster's processes only."""
    import psutil

    roots = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
    tree = {process for root in roots for process in (root, *_children_of(root))}
    if head.poll() is None:
        head.terminate()
    _, left = psutil.wait_procs(list(tree), timeout=1)  # workers would outlive their node by some seconds
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait(20)
    psutil.wait_procs(left, timeout=20)


def _children_of(process: psutil.Process) -> list[psutil.Process]:
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def _answers(port: int, head: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False
