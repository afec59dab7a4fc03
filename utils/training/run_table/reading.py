"""One run's folder -> the rows of the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.environment import flat_environment
from utils.errors import ConfigError, DataNotFoundError
from utils.scrubbing import scrubbed
from utils.storage import FolderLock, read_json_lines
from utils.training.config_files import read_config_file
from utils.training.run_state import modified_at, read_state, run_status
from utils.training.run_table.upkeep import ARCHIVED_FILE, NOTES_FILE, TAGS_FILE, is_archived, read_notes, read_tags

#: Files of a run's folder that the tables are made from, besides checkpoints and exports.
SOURCES = ("state.json", "history.jsonl", "config.yaml", TAGS_FILE, "lineage.json", NOTES_FILE, ARCHIVED_FILE)
LINEAGE_FILE = "lineage.json"
# Events of the history that become metrics. Steps stay in the history: there are too many to be of use in a table.
_EVENTS = ("epoch", "evaluate", "metric")
_NO_METRICS = ("event", "step", "epoch", "complete")


def signature(path: Path) -> str:
    """Changes whenever something is written to the run, or its process begins or ends."""
    parts: list[Any] = [FolderLock(path / "lock").is_taken()]
    for name in (*SOURCES, "checkpoints", "exports", "plots"):
        try:
            stat = (path / name).stat()
        except OSError:
            parts.append(None)
        else:
            parts.append([stat.st_mtime_ns, stat.st_size])
    return json.dumps(parts)


def read_run(path: Path) -> dict[str, Any] | None:
    """Everything about a run, by table; None for a folder that is no run's. What cannot be read is left out."""
    state = read_state(path)
    if state is None:
        return None
    config = _config(path)
    training = config.get("training") if isinstance(config.get("training"), dict) else {}
    assert isinstance(training, dict)
    # Tagging, annotating or archiving a run is not training it.
    written = [name for name in SOURCES if name not in (TAGS_FILE, NOTES_FILE, ARCHIVED_FILE)]
    changed = [at for at in (modified_at(path / name) for name in written) if at]
    notes = read_notes(path)
    created = min((at for at in (modified_at(path / "environment.json"), *changed) if at), default=0.0)
    run = {
        "name": path.name, "run_id": state.get("run_id"), "path": str(path), "status": run_status(path, state),
        "stop_reason": state.get("stop_reason"), "error": state.get("error"), "step": state.get("step"),
        "epoch": state.get("epoch"), "created_at": created, "updated_at": max(changed, default=created),
        "notes": (training.get("notes") or "") if notes is None else notes, "archived": is_archived(path),
    }  # fmt: skip
    return {
        "runs": scrubbed(run),
        "settings": [{"name": name, "value": value} for name, value in scrubbed(training).items()],
        "metrics": list(_metrics(path)),
        "tags": [{"tag": tag} for tag in read_tags(path)],
        "artifacts": list(_artifacts(path)),
        "lineage": list(_lineage(path)),
    }


def read_environment(path: Path) -> dict[str, Any]:
    """The facts of a run's environment.json under dotted names, or {}."""
    facts = _json(path / "environment.json")
    return flat_environment(facts) if isinstance(facts, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_config_file(path / "config.yaml")
    except (ConfigError, DataNotFoundError):
        return {}  # a run that was ended before it wrote one, or a damaged file: the rest is known


def _metrics(path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = read_json_lines(path / "history.jsonl")
    except (OSError, ValueError):
        return  # unreadable: the run is listed without metrics
    for row in rows:
        if row.get("event") not in _EVENTS:
            continue
        for name, value in row.items():
            if name not in _NO_METRICS and isinstance(value, (int, float)) and not isinstance(value, bool):
                yield {"name": name, "value": float(value), "step": row.get("step"), "epoch": row.get("epoch")}


def _artifacts(path: Path) -> Iterator[dict[str, Any]]:
    for folder, kind in (
        ("checkpoints", "checkpoint"),
        ("exports", "export"),
        ("plots", "plot"),
        ("artifacts", "file"),
    ):
        for entry in sorted(_entries(path / folder)):
            files = [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files if file.exists())
            yield {"kind": kind, "path": f"{folder}/{entry.name}", "size_bytes": size}
    for line in read_json_lines(path / "artifacts.jsonl"):
        yield {name: line.get(name) for name in ("kind", "path", "size_bytes")}


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []


def _lineage(path: Path) -> Iterator[dict[str, Any]]:
    origin = _json(path / LINEAGE_FILE)
    if isinstance(origin, dict):
        yield {name: origin.get(name) for name in ("kind", "parent", "parent_id", "checkpoint", "step")}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_better(value: float, than: float, mode: str) -> bool:
    """Whether a value of a metric is better; NaN never is, and everything is better than NaN."""
    if math.isnan(value):
        return False
    return math.isnan(than) or (value > than if mode == "max" else value < than)
