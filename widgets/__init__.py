"""What is drawn with ipywidgets: the wizard's forms and the live view of a run. Imports no torch and touches no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from widgets.attach import show_live
    from widgets.live import train_live

_EXPORTS = {"show_live": "widgets.attach", "train_live": "widgets.live"}
__all__ = ["show_live", "train_live"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
