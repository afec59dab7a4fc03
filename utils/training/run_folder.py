"""A run on disk: its folder, and who may write to it. `run_start` decides whether it is continued.

runs/<run_name>/
  config.yaml        the TrainingConfig and TaskSpec
  history.jsonl      one row an event: the source of every curve and table
  state.json         id, status, step, epoch, best value: what a person or a front end looks at
  environment.json   versions and device
  lineage.json       the run that this one was started from, if any
  checkpoints/       epoch_N.pt, step_N.pt, best.pt (elsewhere when checkpoint_dir is given)
  plots/  exports/
  lock               held while a process trains here
  STOP               made by anybody who wants the run to save and stop; with the word keep_best in it, the results have the
                     best checkpoint's weights
  FINISH             made by anybody who wants the decay of the wsd schedule to begin now
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils import environment
from utils.errors import (
    CheckpointError,
    CheckpointWriteError,
    ConfigError,
)
from utils.scrubbing import scrubbed
from utils.storage import (
    FolderLock,
    absolute_path,
    append_line,
    atomic_write,
    json_line,
    read_json_lines,
    remove_stale_temporaries,
    write_json,
)
from utils.training.config_files import write_config_file

# Rows of steps are written together: opening the file costs more than a small model's step may.
_FLUSH_EVERY_S = 0.5

log = logging.getLogger("trainbook.run")

_EXPERIMENT = re.compile(r"^exp(\d+)$")


class RunFolder:
    """One run's folder. Made by `reserve` or opened by path; nothing is written before `lock()`.

    Attributes:
        may_lose_rows: whether history rows that cannot be written are skipped with a warning.
    """

    def __init__(self, path: Path, checkpoints: Path | None = None) -> None:
        self.path = path = absolute_path(path)
        checkpoints = None if checkpoints is None else absolute_path(checkpoints)
        self.may_lose_rows = False
        self._warned: set[Path] = set()
        self._unwritten: list[str] = []  # rows of the history, as text
        self._flushed_at = 0.0
        self.checkpoints = checkpoints or path / "checkpoints"
        self.run_id = self._read_state().get("run_id") or uuid.uuid4().hex
        self._locks = [FolderLock(path / "lock")]
        if checkpoints is not None:
            self._locks.append(FolderLock(checkpoints / ".lock"))

    @classmethod
    def reserve(cls, output_dir: Path, run_name: str | None, checkpoints: Path | None = None) -> RunFolder:
        """Make a folder that was not there: `run_name`, else `run_name-2` and so on; without a name the next free expN.

        Raises:
            ConfigError: the folder cannot be made; says which path.
        """
        output_dir = absolute_path(output_dir)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            taken = [int(m[1]) for p in output_dir.iterdir() if p.is_dir() and (m := _EXPERIMENT.match(p.name))]
            number = max(taken, default=0) + 1 if run_name is None else 1
            while True:
                name = f"exp{number}" if run_name is None else run_name if number == 1 else f"{run_name}-{number}"
                try:
                    (output_dir / name).mkdir()  # making it is what reserves it, also against other processes
                except FileExistsError:
                    number += 1
                    continue
                return cls(output_dir / name, checkpoints)
        except OSError as error:
            raise ConfigError(
                f"the run's folder cannot be made in {output_dir}: {error.strerror or error}. Choose another output_dir."
            ) from None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def history_file(self) -> Path:
        """File of the history rows."""
        return self.path / "history.jsonl"

    def lock(self, stack: contextlib.ExitStack) -> None:
        """Use this folder alone until `stack` closes. Raises `RunLockedError` that names the process that has it."""
        for lock in self._locks:
            try:
                lock.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"{lock.path.parent} cannot be used: {error.strerror}. Choose another folder."
                ) from None
            stack.enter_context(lock.held())
            remove_stale_temporaries(lock.path.parent)

    def new_identity(self) -> None:
        """This folder holds another run from now on."""
        self.run_id = uuid.uuid4().hex

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # absent, or torn by a crash of another program: checkpoints hold the id as well
        return state if isinstance(state, dict) else {}

    def write_state(self, status: str, **facts: Any) -> None:
        """Say where the run stands, for people and front ends. Nothing depends on it, so a failure is only logged."""
        path = self.path / "state.json"
        with self._written(path, go_on=True):
            write_json(path, {"run_id": self.run_id, "status": status, **facts})

    def write_description(self, config: dict[str, Any], task_spec: dict[str, Any], **sections: Any) -> None:
        """config.yaml and environment.json. Raises `CheckpointWriteError` that names the file.

        Args:
            sections: further sections of config.yaml.
        """
        config_file, environment_file = self.path / "config.yaml", self.path / "environment.json"
        with self._written(config_file):
            write_config_file(config_file, {"training": config, "task": task_spec, **sections})
        with self._written(environment_file):
            write_json(environment_file, environment.snapshot())

    def write_lineage(self, kind: str, parent: str, **facts: Any) -> None:
        """lineage.json: the run that this one starts from. Nothing depends on it, so a failure is only logged.

        Args:
            kind: "checkpoint" or "fork"; parent: the other run's name; facts: parent_id, checkpoint, step.
        """
        path = self.path / "lineage.json"
        with self._written(path, go_on=True):
            write_json(path, {"kind": kind, "parent": parent, **facts})

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to the history. A step's row may wait in memory for half a second of training, or for `flush`.

        Raises `CheckpointWriteError` unless `may_lose_rows`.
        """
        self._unwritten.append(json_line(scrubbed(row)))
        if row["event"] != "step" or time.monotonic() - self._flushed_at >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are still in memory. What a crash takes of them is not in a checkpoint either."""
        self._flushed_at = time.monotonic()
        if self._unwritten:
            lines, self._unwritten = "\n".join(self._unwritten), []
            with self._written(self.history_file, go_on=self.may_lose_rows):
                append_line(self.history_file, lines)

    @contextlib.contextmanager
    def _written(self, path: Path, *, go_on: bool = False) -> Iterator[None]:
        """A full or vanished disk becomes one error that names the file, or one warning for all of them."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            message = f"{path} could not be written: {reason}. Free some space; checkpoints are intact."
            if not go_on:
                raise CheckpointWriteError(message) from error
            if path not in self._warned:
                self._warned.add(path)
                log.warning("Training continues: %s", message)

    def keep_history(self, count: int, rows: Iterable[dict[str, Any]]) -> int:
        """Cut the history to its first `count` rows: what came after the checkpoint is about to be done again.

        Args:
            rows: what the checkpoint itself remembers, used when the file has fewer than `count` rows.
        Returns:
            rows in the file afterwards.
        Raises:
            CheckpointWriteError: the file cannot be written; it is as it was.
        """
        kept = read_json_lines(self.history_file)[:count]
        if len(kept) < count:
            kept = list(rows)
        text = "".join(json_line(scrubbed(row)) + "\n" for row in kept)
        with self._written(self.history_file):
            atomic_write(self.history_file, lambda file: file.write(text.encode()))
        return len(kept)

    @property
    def stop_file(self) -> Path:
        """Making this file asks the run to save and stop."""
        return self.path / "STOP"

    @property
    def finish_file(self) -> Path:
        """Making this file asks the run to begin its decay now."""
        return self.path / "FINISH"

    def stop_requested(self) -> str | None:
        """The reason to stop that the STOP file gives: "keep_best" or "stop_file"; None where there is no such file."""
        if not self.stop_file.exists():
            return None
        try:
            said = self.stop_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            said = ""  # a folder, or no text: it is there, and that is what counts
        return "keep_best" if said == "keep_best" else "stop_file"

    def take_finish_request(self) -> bool:
        """Whether the FINISH file is there; it is removed."""
        if not self.finish_file.exists():
            return False
        with self._written(self.finish_file, go_on=True):
            self.finish_file.unlink()
        return True

    def clear_requests(self) -> None:
        """Remove the STOP and FINISH files: they were obeyed, or meant an earlier training."""
        for file in (self.stop_file, self.finish_file):
            file.unlink(missing_ok=True)


class FollowersFolder(RunFolder):
    """A run's folder as the processes see it that do not write: of several that train together, the main one keeps it."""

    def __init__(self, path: Path, checkpoints: Path, run_id: str) -> None:
        self.path, self.checkpoints, self.run_id = path, checkpoints, run_id
        self.may_lose_rows = True

    def lock(self, stack: contextlib.ExitStack) -> None:
        """Nothing: the main process has the lock."""

    def write_state(self, status: str, **facts: Any) -> None:
        """Nothing."""

    def write_description(self, config: dict[str, Any], task_spec: dict[str, Any], **sections: Any) -> None:
        """Nothing."""

    def write_lineage(self, kind: str, parent: str, **facts: Any) -> None:
        """Nothing."""

    def record(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def keep_history(self, count: int, rows: Iterable[dict[str, Any]]) -> int:
        """Nothing; `count`."""
        return count

    def stop_requested(self) -> str | None:
        """None: the main process looks."""
        return None

    def take_finish_request(self) -> bool:
        """False: the main process looks."""
        return False

    def clear_requests(self) -> None:
        """Nothing."""
