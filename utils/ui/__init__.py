"""The setup wizard as data, usable with no front end: presets, settings, steps. Imports neither torch nor widgets."""

from __future__ import annotations

from utils.ui.notebook import start_notebook
from utils.ui.presets import PRESETS, ConfigPresets, Preset
from utils.ui.progress import PrintProgress
from utils.ui.run_comparison import compare_runs
from utils.ui.run_report import write_report
from utils.ui.runs import list_runs, show_runs
from utils.ui.samples import show_samples
from utils.ui.setup_config import SetupConfig
from utils.ui.setup_wizard import SetupWizard
from utils.ui.take_home import show_take_home
from utils.ui.wizard_state import WizardState

__all__ = [
    "PRESETS", "ConfigPresets", "Preset", "PrintProgress", "SetupConfig", "SetupWizard", "WizardState",
    "compare_runs", "list_runs", "show_runs", "show_samples", "show_take_home", "start_notebook",
    "write_report",
]  # fmt: skip
