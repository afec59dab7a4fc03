"""`get_device`, `get_optimal_workers` and `setup_logger`, as experiment scripts import them."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.environment import detect_device

if TYPE_CHECKING:
    import torch

_MOST_WORKERS = 8  # more of them wait for each other: what a loader of images can use on the machines of today


def get_device(device: str | None = None) -> torch.device:
    """The device to train on, as a `torch.device`.

    Args:
        device: "cuda", "mps" or "cpu"; "auto" or None: the fastest that is there.
    Raises:
        ConfigError: there is no such device; says what is.
    """
    import torch

    return torch.device(detect_device(device).kind)


def get_optimal_workers() -> int:
    """Loader processes for this machine: one less than the processors this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(_MOST_WORKERS, usable - 1))


def setup_logger(
    name: str = "trainbook", log_file: str | Path | None = None, level: int | str = logging.INFO
) -> logging.Logger:
    """A logger that writes to standard error, and to `log_file` as well. Called again, it adds nothing twice.

    Args:
        log_file: appended to; its folder is made when absent.
    """
    logger = logging.getLogger(name)
    logger.setLevel(level)
    there = {handler.get_name() for handler in logger.handlers}
    wanted: dict[str, logging.Handler] = {}
    if "stderr" not in there:
        wanted["stderr"] = logging.StreamHandler(sys.stderr)
    target = None if log_file is None else str(Path(log_file).resolve())
    if target is not None and target not in there:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        wanted[target] = logging.FileHandler(target, encoding="utf-8")
    for mark, handler in wanted.items():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.set_name(mark)
        logger.addHandler(handler)
    return logger
