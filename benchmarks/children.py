"""A function of this package in a process of its own: nothing that one measurement leaves behind reaches the next."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class ChildError(RuntimeError):
    """A measurement failed in its process."""


def call(target: str, threads: int | None = None, **arguments: Any) -> Any:
    """`target(**arguments)` in a new process; arguments and result are what JSON can hold.

    Args:
        target: "benchmarks.module:function".
        threads: processor threads that the process computes with; None: as torch decides.
    Raises:
        ChildError: it failed; carries the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.children", target, str(result)], input=json.dumps(arguments), text=True,
            capture_output=True, cwd=folder, env={**os.environ, **_environment(threads, arguments.get("device"))}, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ChildError(f"{target} failed:\n{done.stdout[-1000:]}{done.stderr[-4000:]}")
        return json.loads(result.read_text(encoding="utf-8"))


def _environment(threads: int | None, device: str | None) -> dict[str, str]:
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device == "cpu":
        # A GPU that is there but not asked for must be taken by nobody.
        environment |= {"TRAINBOOK_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def main() -> None:
    """Call the function that the command line names with the arguments on standard input; leave the result in a file."""
    module, _, function = sys.argv[1].partition(":")
    warnings.simplefilter("ignore")  # advice of the frameworks to their users
    result = getattr(importlib.import_module(module), function)(**json.loads(sys.stdin.read()))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
