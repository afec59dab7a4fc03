"""Outputs of the loop: checkpoints and history rows; and stand-ins that keep nothing on disk."""

from __future__ import annotations

from typing import Protocol

from utils.training.engine.state import Row


class Saver(Protocol):
    """Sink for the loop's state. Decides nothing about training."""

    def after_step(self) -> None:
        """Save when a time-based save is due."""

    def after_evaluation(self, value: float | None) -> None:
        """Save when this validation, within an epoch, is one of the best."""

    def after_epoch(self, value: float | None) -> None:
        """Save when an epoch's end is due or one of the best."""

    def save(self, *, wait: bool = False) -> object:
        """Save now; with `wait`, return when it is on disk."""


class Records(Protocol):
    """Sink for history rows, and source of requests to stop or to finish: a run's folder."""

    def record(self, row: Row) -> None:
        """Take one row."""

    def stop_requested(self) -> str | None:
        """The reason to stop that a STOP file gives, None where there is none; asked at most once a second."""

    def take_finish_request(self) -> bool:
        """Whether a FINISH file was made, which is removed; asked at most once a second."""


class KeptRows:
    """Rows in memory, without a folder."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def record(self, row: Row) -> None:
        """Take one row."""
        self.rows.append(row)

    def stop_requested(self) -> str | None:
        """Nobody asks."""
        return None

    def take_finish_request(self) -> bool:
        """Nobody asks."""
        return False


class NoSaver:
    """Saves nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def after_evaluation(self, value: float | None) -> None:
        """Nothing."""

    def after_epoch(self, value: float | None) -> None:
        """Nothing."""

    def save(self, *, wait: bool = False) -> None:
        """Nothing."""
