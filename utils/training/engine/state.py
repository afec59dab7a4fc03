"""TrainState: everything about a run that is not a tensor of the model or the optimizer, and must survive a crash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from utils.training.engine.hardware.energy import EnergyUse
from utils.training.engine.hardware.memory import Pieces
from utils.training.engine.metrics import Sums

Row = dict[str, Any]


@dataclass
class Best:
    """The best value of the monitored metric so far.

    Attributes:
        value: None before the first.
        epoch: completed epochs when it was measured (1-based); a validation within epoch 0 counts as 1.
        step: optimizer steps done then.
        waits: values since then without improvement.
    """

    value: float | None = None
    epoch: int | None = None
    step: int | None = None
    waits: int = 0


@dataclass
class TrainState:
    """State of a run. Two runs that agree in it (and in weights, optimizer and random state) continue identically.

    Attributes:
        step: optimizer steps done, skipped ones included.
        epoch: completed epochs.
        samples_done: samples of the current epoch that are done.
        targets_done: targets trained on, over the whole run.
        epoch_sums: sums of the current epoch; window_sums: since the last step row.
        history: epoch and evaluation rows, in order.
        evaluated_step: the step after which the latest validation was done, -1 before any.
        rows_written: lines of history.jsonl that belong to this state.
        pieces, validation_pieces: how many samples go through the model at once, after memory ran out.
        elapsed_s: seconds of training in all sessions; energy: what was counted in them, where the machine counts it.
        finish_at: optimizer steps after which the run ends because it was asked to finish early; None: as planned.
        stop_reason: why training ended: "finished", "max_steps", "early_stopping", "finish_now" end it for good; "keep_best"
            (the results have the best checkpoint's weights), "stop_button", "stop_file",
            "interrupt", "time_limit", "requested" and others leave it to be continued; None while it runs. Early stopping sets
            it together with the count that it follows from, so no checkpoint holds one without the other.
        finished_sums, validation_sums: sums of the latest epoch that was finished and of the latest validation, for whoever
            looks at the run; no checkpoint holds them.
    """

    step: int = 0
    epoch: int = 0
    samples_done: int = 0
    targets_done: int = 0
    epoch_sums: Sums = field(default_factory=Sums)
    window_sums: Sums = field(default_factory=Sums)
    best: Best = field(default_factory=Best)
    history: list[Row] = field(default_factory=list)
    evaluated_step: int = -1
    rows_written: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    empty_steps: int = 0
    elapsed_s: float = 0.0
    energy: EnergyUse = field(default_factory=EnergyUse)
    pieces: Pieces = field(default_factory=Pieces)
    validation_pieces: Pieces = field(default_factory=Pieces)
    stop_reason: str | None = None
    finish_at: int | None = None
    finished_sums: Sums | None = field(default=None, compare=False)
    validation_sums: Sums | None = field(default=None, compare=False)

    #: Fields of earlier versions: name -> present name, None where nothing took its place.
    EARLIER: ClassVar[Mapping[str, str | None]] = {}

    ENDINGS: ClassVar[tuple[str, ...]] = ("finished", "max_steps", "early_stopping", "finish_now")

    @property
    def ended(self) -> bool:
        """Whether the run is over for good, as opposed to interrupted."""
        return self.stop_reason in self.ENDINGS

    def update_best(self, value: float, mode: str, min_delta: float, patience: int | None = None) -> bool:
        """Record a value of the monitored metric; returns whether it improved. NaN is never an improvement.

        This is the one definition of best: strictly better than the best so far, by more than `min_delta`. Early stopping and
        best.pt follow it.

        Args:
            patience: values in a row without improvement that end the run (`stop_reason="early_stopping"`); None: never.
        """
        sign = 1.0 if mode == "min" else -1.0
        known = self.best.value
        improved = not math.isnan(value) and (
            known is None or math.isnan(known) or sign * value < sign * known - min_delta
        )
        if improved:
            in_epoch = 1 if self.samples_done else 0
            self.best = Best(value, max(1, self.epoch + in_epoch), self.step)
        else:
            self.best.waits += 1
            if patience is not None and self.best.waits >= patience:
                self.stop_reason = "early_stopping"
        return improved

    @property
    def is_best(self) -> bool:
        """Whether the latest value of the monitored metric, measured after this very step, is the best so far."""
        return self.best.step == self.step

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for a checkpoint."""
        return {
            "step": self.step, "epoch": self.epoch, "samples_done": self.samples_done, "targets_done": self.targets_done,
            "epoch_sums": self.epoch_sums.to_dict(), "window_sums": self.window_sums.to_dict(), "best": vars(self.best).copy(),
            "history": [dict(row) for row in self.history], "evaluated_step": self.evaluated_step,
            "rows_written": self.rows_written,
            "skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row, "empty_steps": self.empty_steps,
            "pieces": self.pieces.most, "validation_pieces": self.validation_pieces.most,
            "elapsed_s": self.elapsed_s, "energy": self.energy.to_dict(), "stop_reason": self.stop_reason,
            "finish_at": self.finish_at,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """The inverse of `to_dict`, also of an earlier version's: fields that are missing take their defaults."""
        values = {**cls().to_dict(), **cls.renamed(values)}
        for name in ("epoch_sums", "window_sums"):
            values[name] = Sums.from_dict(values[name])
        for name in ("pieces", "validation_pieces"):
            values[name] = Pieces(values.get(name))
        values["energy"] = EnergyUse.from_dict(values["energy"])
        values["best"] = Best(**{**vars(Best()), **values["best"]})
        values["history"] = [dict(row) for row in values["history"]]
        return cls(**values)

    @classmethod
    def renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Rename the fields of an earlier version's `to_dict` to this version's."""
        names = {name: cls.EARLIER.get(name, name) for name in values}
        return {present: values[name] for name, present in names.items() if present is not None}
