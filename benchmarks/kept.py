"""Trainings that are done, in a file of JSON lines, so that an interrupted measurement can be continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """Values by key, in memory and in a file.

    Args:
        path: created when the first value is stored, and read if it exists. With None, nothing is stored.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._known = {json.dumps(entry["of"]): entry["value"] for entry in map(json.loads, lines)}

    def of(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """The value of `key`, made and stored unless it is known. Keys and values are plain JSON."""
        name = json.dumps(key)
        if name not in self._known:
            self._known[name] = make()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"of": key, "value": self._known[name]}) + "\n")
        return self._known[name]
