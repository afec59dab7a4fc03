"""Shared parts of queue and search on a Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from utils.errors import MissingPackageError


def is_ray(url: Any) -> bool:
    """Whether a queue's URL names a Ray cluster."""
    return isinstance(url, str) and url.startswith("ray:")


def import_ray(purpose: str) -> Any:
    """The package. Raises `MissingPackageError`."""
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError("ray", purpose, "cluster") from error
    return ray


def environment() -> dict[str, Any]:
    """Ray's description of a process that can import what this one can."""
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}}


def connect(ray: Any, address: str | None, **options: Any) -> None:
    """`ray.init` in an environment with this process's import path, without the handler of SIGTERM that it would leave."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, runtime_env=environment(), **options)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
