"""Read a run's state from its folder: state.json, and whether a process holds its lock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from utils.storage import FolderLock

RunStatus = Literal["running", "finished", "stopped", "broken off", "failed"]


def read_state(path: Path) -> dict[str, Any] | None:
    """Content of state.json; {} for a run's folder without a readable one, None for a folder that is no run's."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {} if (path / "checkpoints").is_dir() or (path / "history.jsonl").is_file() else None


def modified_at(path: Path) -> float:
    """Modification time of the file, in seconds since the epoch; 0 if it does not exist, or not any more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def run_status(path: Path, state: Mapping[str, Any]) -> RunStatus:
    """Status of the run in `path`, whose state.json holds `state`."""
    if FolderLock(path / "lock").is_taken():
        return "running"
    if state.get("external") and state.get("status") == "running":
        return "running"  # trained by another program, which holds no lock here
    known: dict[Any, RunStatus] = {"ended": "finished", "stopped": "stopped", "failed": "failed"}
    return known.get(state.get("status"), "broken off")
