"""The bundle of a finished run: made once, from its best checkpoint, and found again afterwards."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from utils.errors import ExportError, TrainbookError
from utils.scrubbing import scrub
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.checkpointing.weights import load_model_weights, weights_to_use
from utils.training.export.bundle import write_bundle
from utils.training.export.exporting import _checkpoint_of, _cpu_copy, _portable
from utils.training.task_spec import TaskSpec

log = logging.getLogger("trainbook.export")


def bundle_of(results: Any, run_id: str, config: Any = None) -> tuple[str | None, str | None, list[str]]:
    """The path of the run's bundle, which is made unless it is there already; never raises for a bundle that fails.

    Args:
        results: the TrainingResults of a finished run.
        run_id: recorded in the bundle, so that the run finds it again.
        config: the model's own configuration.
    Returns:
        The path, or None and the reason; and notices for the results.
    """
    try:
        path = _existing(results, run_id) or _made(results, run_id, config)
        left_out = _read(path)["not_written"]
    # A bundle is an addition: whatever goes wrong with it, the run and its results are there.
    except Exception as error:
        reason = scrub(
            str(error) if isinstance(error, TrainbookError) else f"{type(error).__name__}: {str(error)[:500]}"
        )
        log.warning("No export bundle was made: %s", reason, exc_info=not isinstance(error, TrainbookError))
        return None, reason, [f"No export bundle was made: {reason}"]
    return str(path), None, [f"{name} is not in the export bundle: {reason}" for name, reason in left_out.items()]


def _made(results: Any, run_id: str, config: Any) -> Path:
    path, _ = _checkpoint_of(results, "best")
    checkpoint = read_checkpoint(path, mapped=True)
    model = _cpu_copy(results.bare_model)
    load_model_weights(model, weights_to_use(checkpoint), path)
    run = {
        "run": {
            "name": results.run_name, "id": run_id, "step": (checkpoint["state"] or {}).get("step"),
            "checkpoint": Path(path).name, "requested_formats": list(results.training_config.export_formats),
        }
    }  # fmt: skip
    return write_bundle(
        model, config, results.task_spec or TaskSpec("model"), results.training_config, _base(results), results.tokenizer,
        f"checkpoint {_portable(path, Path(results.run_dir).absolute())}", run, results,
    )  # fmt: skip


def _existing(results: Any, run_id: str) -> Path | None:
    """The run's newest bundle of the same checkpoint and formats."""
    step = results.state.best.step if results.best_model_path else results.steps
    wanted = (run_id, step, list(results.training_config.export_formats))
    for metadata in sorted(_base(results).glob("model_*/metadata.json"), reverse=True):
        try:
            run = _read(metadata.parent).get("run", {})
        except ExportError:  # somebody else's folder
            continue
        if (run.get("id"), run.get("step"), run.get("requested_formats")) == wanted:
            return metadata.parent
    return None


def _base(results: Any) -> Path:
    given = results.training_config.with_absolute_paths().export_dir
    return Path(results.run_dir).absolute() / "exports" if given is None else Path(given)


def _read(bundle: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((bundle / "metadata.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ExportError(f"{bundle / 'metadata.json'} cannot be read: {error}") from error
