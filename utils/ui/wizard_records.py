"""Records of the wizard: refused entries, clicks, and the state that a preset replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.errors import Problem
from utils.ui.presets import Preset
from utils.ui.setup_config import SetupConfig


@dataclass(frozen=True)
class Entry:
    """Something entered that the setup refused.

    Attributes:
        value: what it was.
        problems: why it was refused.
        text: as it was typed; None when it was chosen.
    """

    value: Any
    problems: tuple[Problem, ...]
    text: str | None = None


@dataclass(frozen=True)
class Clicks:
    """Settings that were changed through the wizard, over those that a cell gave.

    Attributes:
        preset: key of the preset that was chosen; None: the one that was given.
        values: settings changed since, by name.
    """

    preset: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.preset is not None or bool(self.values)


@dataclass(frozen=True)
class Replaced:
    """State that a preset replaced.

    Attributes:
        setup, preset: the settings before, and the preset that they came from.
        entries: what had been refused; clicked, restored: names of settings, see `WizardState`.
    """

    setup: SetupConfig
    preset: Preset | None
    entries: Mapping[str, Entry]
    clicked: frozenset[str]
    restored: tuple[str, ...]
