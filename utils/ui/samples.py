"""What a model wrote while it learnt, from the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.training.samples import read_samples
from utils.views.display import show_columns, show_text
from utils.views.tables import on_one_line

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults

_MOST_ROWS = 6


def show_samples(results: TrainingResults) -> None:
    """Show how the same beginnings were continued as training went on: at most six validations, first and last among them."""
    rows = read_samples(Path(results.run_dir))
    if not rows:
        show_text("There are no sample texts: nothing was validated, or the trainer had no tokenizer.")
        return
    last = len(rows) - 1
    places = sorted({round(index * last / max(1, _MOST_ROWS - 1)) for index in range(_MOST_ROWS)})
    cells = [
        (f"{rows[place]['step']:,}", *(on_one_line(sample["text"]) for sample in rows[place]["samples"]))
        for place in places
    ]
    header = ("after step", *(f"beginning {number}" for number in range(1, len(cells[0]))))
    show_columns("What the model wrote", header, cells)
