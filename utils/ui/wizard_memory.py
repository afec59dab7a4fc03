"""Remember the clicks of this process, so that a cell that is run again shows them again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from utils.ui.presets import Preset
from utils.ui.wizard_records import Clicks

# For the life of the process, as the cell's own variables are; a few settings for each cell that was ever run.
_clicks: dict[str, Clicks] = {}


def cell_key(preset: Preset | None, overrides: Mapping[str, Any]) -> str:
    """Key under which two runs of a cell count as the same: its preset and overrides, and in a notebook the cell
    itself. Not the model: clicks survive a change of it."""
    return repr((_cell_id(), preset, sorted(overrides.items())))


def _cell_id() -> str | None:
    """The id of the cell that runs, where the front end sends it (JupyterLab, Notebook 7)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    request = shell.get_parent() if shell is not None and hasattr(shell, "get_parent") else {}
    return (request.get("metadata") or {}).get("cellId")


def remember(key: str, clicks: Clicks) -> None:
    """Keep the clicks of a cell's form; none: forget them."""
    _clicks[key] = clicks
    if not clicks:
        del _clicks[key]


def remembered(key: str) -> Clicks:
    """The clicks kept for a cell."""
    return _clicks.get(key, Clicks())
