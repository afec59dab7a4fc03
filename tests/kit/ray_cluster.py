"""A Ray cluster of the tests' own: one node on this machine with two workers, for the whole test session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HOST = "127.0.0.2"
_START_S = 180.0


@pytest.fixture(scope="session")
def ray_url() -> Iterator[str]:
    """The URL of a running cluster."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the cluster listens on a second loopback address, which Linux has")
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    import psutil

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
    with open(folder / "output.txt", "wb") as output:
        head = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(client, head, folder)
        yield f"ray://{HOST}:{client}"
    finally:
        # Ray's own clean-up first; then whatever is left of the tree.
        tree = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        _, left = psutil.wait_procs([psutil.Process(head.pid), *tree] if head.poll() is None else tree, timeout=5)
        for process in left:
            process.kill()
        head.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, head: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"Ray did not start:\n{(folder / 'output.txt').read_text(errors='replace')[-3000:]}")
