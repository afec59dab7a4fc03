"""Progress of a training as text: a bar in a terminal, one line per evaluation in a log file or a notebook's cell."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from utils.training.engine.callbacks import Callback
from utils.views.display import show_text

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer


# (epoch from 0, epochs in all, the epoch's row) -> a line about it.
EpochLine = Callable[[int, int, Mapping[str, Any]], str]


class PrintProgress(Callback):
    """Prints a line after every epoch, and after every validation within one.

    Args:
        line: what to print about an epoch; None: `progress_line`.
    """

    main_only = True

    def __init__(self, line: EpochLine | None = None) -> None:
        self._line = line or progress_line

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Print a validation that `eval_every` asked for within an epoch."""
        data = trainer.data
        at_the_end = data is None or trainer.state.samples_done >= (data.samples_per_epoch or math.inf)
        if isinstance(trainer.training_config.eval_every, int) and not at_the_end:  # else the epoch's line has it
            self._show(evaluation_line(trainer.state.step, logs or {}))

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Print the epoch's row."""
        self._show(self._line(epoch, trainer.training_config.epochs, logs or {}))

    def _show(self, line: str) -> None:
        show_text(line)


class ProgressBar(PrintProgress):
    """A tqdm bar over the run's steps on standard error, with the same lines above it."""

    may_be_late = True

    def __init__(self, line: EpochLine | None = None) -> None:
        super().__init__(line)
        self._bar: Any = None

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Draw the bar; a run that is continued begins where it was."""
        from tqdm import tqdm

        total = (logs or {}).get("total_steps")
        self._bar = tqdm(total=total, initial=trainer.state.step, unit="step", dynamic_ncols=True, file=sys.stderr)

    def on_step_end(self, step: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Move the bar to `step`."""
        loss = (logs or {}).get("train/loss", math.nan)
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def on_train_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def on_error(self, error: BaseException, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)


def progress_callback(line: EpochLine | None = None) -> PrintProgress:
    """The bar where standard error is a terminal, else lines."""
    return ProgressBar(line) if sys.stderr.isatty() else PrintProgress(line)


def evaluation_line(step: int, row: Mapping[str, Any]) -> str:
    """One line about a validation after `step` optimizer steps."""
    return "  ".join([f"step {step}", *(f"{name.replace('/', ' ')} {value:.4f}" for name, value in row.items())])


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
        over_tokens = any(name.endswith("/perplexity") for name in row)
        scored = any(name.endswith(("/accuracy", "/r2", "/mae")) for name in row)
        unit = "targets/s" if scored and not over_tokens else "tokens/s"  # one label for a text is no token
        parts.append(f"{row['time/tokens_per_s']:,.0f} {unit}")
    if row.get("time/epoch_s") is not None:
        parts.append(f"{row['time/epoch_s']:.1f} s")
    return "  ".join(parts)
