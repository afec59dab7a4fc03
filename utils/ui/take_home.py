"""Where everything of a run is, at the end of the notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.views.display import show_table

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults


def show_take_home(results: TrainingResults, exported: Mapping[str, Any]) -> None:
    """Show the paths of exports, curves and checkpoints.

    Args:
        results: of the training.
        exported: what `export_model` returned: format -> ExportResult.
    """
    rows = {f"{name} export": _export_text(result) for name, result in exported.items()}
    rows["curves"] = str(results.curves_path.resolve())
    if results.best_model_path is not None:
        rows["best checkpoint"] = results.best_model_path
    rows["run folder"] = str(results.run_dir.resolve())
    show_table("Take home", rows)


def _export_text(result: Any) -> str:
    agreement = f"largest difference of logits from the model: {result.parity['max_abs_diff']:.2g}"
    return "\n".join([str(result.path), f"{result.size_bytes / 1e6:.1f} MB; {agreement}", *result.notes])
