"""Where everything of a run is, at the end of the notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.errors import TrainbookError
from utils.views.display import show_table

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults


def show_take_home(results: TrainingResults, exported: Mapping[str, Any]) -> None:
    """Show the paths of exports, curves and checkpoints of one run, and of its report, which is written now.

    Args:
        results: of the training.
        exported: what `export_model` returned: format -> ExportResult. Exports of another run are reported, not listed.
    """
    run_dir = results.run_dir.absolute()
    rows = {}
    for name, result in exported.items():
        other = getattr(result, "run_dir", None)
        if other is not None and other != run_dir:
            rows[f"{name} export"] = (
                f"Not exported yet: the last export is of run {other.name}. Run the Export cell again."
            )
        else:
            rows[f"{name} export"] = _export_text(result)
    for name, reason in getattr(exported, "not_written", {}).items():
        rows[f"{name} export"] = f"Not written: {reason}"
    rows["curves"] = str(results.curves_path.resolve())
    if results.best_model_path is not None:
        rows["best checkpoint"] = results.best_model_path
    rows["report"] = _report_text(results)
    rows["run folder"] = str(results.run_dir.resolve())
    show_table("Take home", rows)


def _report_text(results: TrainingResults) -> str:
    """Write the run's report; one that cannot be written is a sentence in the table."""
    from utils.ui.run_report import write_report

    try:
        return str(write_report(results))
    except (OSError, TrainbookError) as error:
        return f"Not written: {error}"


def _export_text(result: Any) -> str:
    return "\n".join([str(result.path), f"{result.size_bytes / 1e6:.1f} MB; {result.agreement}", *result.notes])
