"""What was clicked in this process, so that a cell that is run again shows it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.adapters.facts import ModelFacts
from utils.ui.presets import Preset
from utils.ui.wizard_state import Clicks

# For the life of the process, as the cell's own variables are; a few settings for each cell that was ever run.
_clicks: dict[str, Clicks] = {}


def cell_key(preset: Preset | None, overrides: Mapping[str, Any], facts: ModelFacts | None) -> str:
    """What makes two runs of a cell the same: preset, what it gives over that, and the model's sizes."""
    return repr((preset, sorted(overrides.items()), facts))


def remember(key: str, clicks: Clicks) -> None:
    """Keep the clicks of a cell's form; none: forget them."""
    _clicks[key] = clicks
    if not clicks:
        del _clicks[key]


def remembered(key: str) -> Clicks:
    """The clicks kept for a cell."""
    return _clicks.get(key, Clicks())
