"""An experiment's table of epochs: columns of text that people read and `load_history_from_log` reads back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.storage import absolute_path, append_line, write_text

log = logging.getLogger("trainbook.compat")

#: What a history holds: one list each, one entry an epoch. Losses are means over samples, accuracies per cent (0 to 100),
#: epoch_time seconds, speeds batches a second.
HISTORY = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_time", "train_speed", "val_speed",
)  # fmt: skip

# Column of the file -> the history's name.
_COLUMNS = {
    "train_loss": "train_loss", "train_acc": "train_accuracy", "val_loss": "val_loss", "val_acc": "val_accuracy",
    "lr": "learning_rate", "epoch_time(s)": "epoch_time", "train_it/s": "train_speed", "val_it/s": "val_speed",
}  # fmt: skip

_HEADER = ", ".join(("epoch", *_COLUMNS))
_FORMATS = ("%8.4f", "%6.2f", "%8.4f", "%6.2f", "%.2e", "%6.1fs", "%6.2f", "%6.2f")

Row = Mapping[str, float]


class ExperimentLog:
    """The file `path`: a header and a row an epoch, numbered from 1. A disk that is full or gone is reported once."""

    def __init__(self, path: str | Path) -> None:
        self.path = absolute_path(path)
        self._warned = False

    def begin(self) -> None:
        """Write the header, unless the file is there."""
        if not self.path.exists():
            self._try(lambda: write_text(self.path, _HEADER + "\n"))

    def append(self, epoch: int, row: Row) -> None:
        """One more epoch; `epoch` counts from 1."""
        self.begin()
        self._try(lambda: append_line(self.path, _line(epoch, row)))

    def rewrite(self, epochs: Sequence[int], rows: Sequence[Row]) -> None:
        """The file with exactly these epochs: what came after a checkpoint is about to be done again."""
        lines = [_HEADER, *(_line(epoch, row) for epoch, row in zip(epochs, rows, strict=True))]
        self._try(lambda: write_text(self.path, "\n".join(lines) + "\n"))

    def read(self) -> tuple[list[int], list[dict[str, float]]]:
        """Epochs (from 1) and their rows, by the header's names whatever their order; of an epoch that is there twice the last.

        A damaged row is left out as a whole, with a warning, and so are comments. Without a file: nothing.
        """
        if not self.path.is_file():
            return [], []
        names: list[str] = []
        found: dict[int, dict[str, float]] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            cells = [cell.strip() for cell in line.split(",")]
            if not line.strip() or line.startswith("#"):
                continue
            if cells[0] == "epoch":
                names = cells
                continue
            row = _parsed(names, cells)
            if row is None:
                log.warning(
                    "%s:%d: left out: %d of %d columns are numbers.", self.path, number, _numbers(cells), len(names)
                )
                continue
            found[int(row.pop("epoch"))] = row
        return list(found), list(found.values())

    def _try(self, write: object) -> None:
        assert callable(write)
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("%s could not be written (%s); training continues.", self.path, error.strerror or error)


def _line(epoch: int, row: Row) -> str:
    cells = [form % row[name] for form, name in zip(_FORMATS, _COLUMNS.values(), strict=True)]
    return ", ".join([f"{epoch:4d}", *cells])


def _parsed(names: Sequence[str], cells: Sequence[str]) -> dict[str, float] | None:
    """A row by the history's names, and `epoch`; None when a column is missing or no number."""
    if len(cells) != len(names):
        return None
    row: dict[str, float] = {}
    for name, cell in zip(names, cells, strict=True):
        wanted = "epoch" if name == "epoch" else _COLUMNS.get(name)
        if wanted is None:
            continue
        try:
            row[wanted] = float(cell.removesuffix("s"))
        except ValueError:
            return None
    return row if set(row) == {"epoch", *HISTORY} and row["epoch"].is_integer() else None


def _numbers(cells: Sequence[str]) -> int:
    return sum(cell.replace(".", "", 1).lstrip("-").isdigit() for cell in cells)
