"""Progress of a training as text: one line an epoch, in a notebook's cell as in a terminal or a log file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.training.engine.callbacks import Callback
from utils.views.display import show_text

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer


class PrintProgress(Callback):
    """Prints a line after every epoch."""

    main_only = True

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Print the epoch's row."""
        show_text(progress_line(epoch, trainer.training_config.epochs, logs or {}))


def progress_line(epoch: int, epochs: int, row: Mapping[str, Any]) -> str:
    """One line about a finished epoch.

    Args:
        epoch: counted from 0.
        epochs: how many there will be.
        row: the epoch's metrics; what is not in it is left out.
    """
    parts = [f"epoch {epoch + 1}/{epochs}"]
    for key, text in (("train/loss", "train loss {:.4f}"), ("val/loss", "val loss {:.4f}")):
        if row.get(key) is not None:
            parts.append(text.format(row[key]))
    if row.get("time/tokens_per_s") is not None:
        parts.append(f"{row['time/tokens_per_s']:,.0f} tokens/s")
    if row.get("time/epoch_s") is not None:
        parts.append(f"{row['time/epoch_s']:.1f} s")
    return "  ".join(parts)
