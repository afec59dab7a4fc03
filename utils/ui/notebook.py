"""Start of training.ipynb's first cell: a line about the machine, and help for cells that are run too early."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from utils import HOME, __version__
from utils.environment import describe
from utils.views.display import show_text

# Name that a cell of training.ipynb makes -> that cell's heading.
CELL_OF: Mapping[str, str] = {
    "CONFIG": "Settings",
    "model": "Model",
    "wizard": "Setup",
    "setup": "Setup",
    "data": "Data",
    "trainer": "Training",
    "results": "Training",
    "checks": "Checks",
    "behaviour": "Tier 2 checks",
    "learning": "Tier 3 checks",
    "exported": "Export",
}


def start_notebook() -> None:
    """Say in one line which library this is and what the machine is, and in another how to continue the newest run that is
    not finished; from now on, name the cell to run first when one is run too early."""
    from utils.ui.runs import continue_sentence

    explain_cell_order()
    show_text("\n".join(filter(None, [f"Trainbook {__version__} in {HOME}; {describe()}", continue_sentence()])))


def explain_cell_order() -> None:
    """Install a handler: a cell that needs a name of a cell not yet run ends with one line that names that cell.

    The error itself stays as it is. Outside IPython nothing happens; a second call changes nothing.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    # By name: after a reload of this module the function registered before is another object.
    for known in list(shell.events.callbacks["post_run_cell"]):
        if getattr(known, "__name__", None) == _explain.__name__:
            shell.events.unregister("post_run_cell", known)
    shell.events.register("post_run_cell", _explain)


def hint(error: BaseException | None) -> str | None:
    """The line for `error`, or None when it has nothing to do with the order of cells."""
    name = error.name if isinstance(error, NameError) else None
    if name is None or name not in CELL_OF:
        return None
    return (
        f"`{name}` is made by the cell under the heading {CELL_OF[name]!r}: run that cell first, then this one again."
    )


def _explain(result: Any) -> None:
    line = hint(result.error_in_exec)
    if line is not None:
        print(line, file=sys.stderr)  # noqa: T201 - the cell's output
