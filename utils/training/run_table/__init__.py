"""The runs of a folder as tables in SQLite: list, filter, compare, find the best, register exported models.

In: the runs' folders. Out: rows and DataFrames. The folders stay the source: the tables are brought up to date from them at
every look, and can be deleted at any time. Only the registry of exported models (`registry`) keeps facts of its own. Exports
are lazy.
"""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "DeletedRun": "utils.training.run_table.upkeep",
    "ExperimentDB": "utils.training.run_table.experiment_db",
    "ExportRegistry": "utils.training.run_table.registry",
    "RegisteredModel": "utils.training.run_table.registry",
    "RunRecord": "utils.training.run_table.table",
    "RunTable": "utils.training.run_table.table",
}
__all__ = ["DeletedRun", "ExperimentDB", "ExportRegistry", "RegisteredModel", "RunRecord", "RunTable"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
