"""ipywidgets front end: the wizard's forms, the live view of a run, model checks, and the panels of exports and jobs.

Imports no torch and touches no files.

Importing this package also checks that `utils` is the library's package: where a file or package of the user's hides it, no
module of the library could report that.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

_LIBRARY = Path(__file__).resolve().parent.parent / "utils"


def _refuse_another_utils() -> None:
    """Raise `ImportError` when `import utils` gives something other than the library; name it, and the way out."""
    loaded = sys.modules.get("utils")
    spec = getattr(loaded, "__spec__", None) if loaded is not None else importlib.util.find_spec("utils")
    file = getattr(loaded, "__file__", None) or getattr(spec, "origin", None)
    if file is not None and Path(file).resolve() == _LIBRARY / "__init__.py":
        return
    place = file or list(getattr(spec, "submodule_search_locations", None) or ()) or "nothing"
    raise ImportError(
        f"`import utils` gives {place}, which hides the package of the same name in {_LIBRARY.parent}. "
        "Rename that file or folder, or work in another folder; then restart the kernel.",
        name="utils",
    )


_refuse_another_utils()

from utils.lazy import lazy_exports  # noqa: E402 - after the check

if TYPE_CHECKING:
    from widgets.attach import show_live
    from widgets.checks import offer_checks, run_checks
    from widgets.export_view import export_panel, run_exports
    from widgets.live import train_live
    from widgets.play import playground
    from widgets.queue_view import queue_panel
    from widgets.runs_view import runs_panel

_EXPORTS = {
    "export_panel": "widgets.export_view",
    "run_exports": "widgets.export_view",
    "offer_checks": "widgets.checks",
    "playground": "widgets.play",
    "queue_panel": "widgets.queue_view",
    "run_checks": "widgets.checks",
    "runs_panel": "widgets.runs_view",
    "show_live": "widgets.attach",
    "train_live": "widgets.live",
}
__all__ = [
    "export_panel", "offer_checks", "playground", "queue_panel", "run_checks", "run_exports", "runs_panel", "show_live",
    "train_live",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
