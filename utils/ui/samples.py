"""Texts and predictions of a model during training, from the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.training.samples import read_samples, without_marks
from utils.views.display import show_columns, show_text
from utils.views.tables import on_one_line

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults

_MOST_ROWS = 6


def show_samples(results: TrainingResults) -> None:
    """Show the continuations of the same prompts in the course of training: at most six validations, first and last among them.

    For a model that writes no text: what it predicts for some validation samples, after the last validation.
    """
    rows = read_samples(Path(results.run_dir))
    if not rows:
        show_text("There are no samples: nothing was validated, or the trainer had no tokenizer.")
        return
    if any("predicted" in sample for sample in rows[-1]["samples"]):
        _show_predictions(rows[-1])
        return
    last = len(rows) - 1
    places = sorted({round(index * last / max(1, _MOST_ROWS - 1)) for index in range(_MOST_ROWS)})
    cells = [
        (f"{rows[place]['step']:,}", *(on_one_line(without_marks(sample["text"])) for sample in rows[place]["samples"]))
        for place in places
    ]
    header = ("after step", *(f"beginning {number}" for number in range(1, len(cells[0]))))
    show_columns("What the model wrote", header, cells)


def _show_predictions(row: dict[str, Any]) -> None:
    cells = [
        (
            on_one_line(sample["input"]),
            on_one_line(sample["true"]),
            on_one_line(sample["predicted"]),
            "" if sample["score"] is None else f"{sample['score']:.2f}",
        )
        for sample in row["samples"]
    ]
    show_columns(f"What the model predicts after step {row['step']:,}", ("input", "true", "predicted", "score"), cells)
