"""The setup wizard as data, usable with no front end: presets, settings, steps. Imports neither torch nor widgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.ui.notebook import start_notebook
from utils.ui.presets import PRESETS, ConfigPresets, Preset
from utils.ui.setup_config import SetupConfig
from utils.ui.setup_wizard import SetupWizard
from utils.ui.wizard_state import WizardState

if TYPE_CHECKING:
    from utils.ui.progress import PrintProgress

__all__ = [
    "PRESETS", "ConfigPresets", "Preset", "PrintProgress", "SetupConfig", "SetupWizard", "WizardState",
    "start_notebook",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # A callback's base class needs torch, which the rest of the package does without.
    if name == "PrintProgress":
        from utils.ui.progress import PrintProgress

        return PrintProgress
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
