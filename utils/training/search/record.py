"""What a search has tried, on disk: runs/<name>/search.json, written after every trial.

runs/<name>/          search.json, lock, plots/search.png
runs/<name>-trial0/   the first trial's run, and so on
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from utils.errors import CheckpointWriteError, ConfigError
from utils.schema import shown
from utils.storage import FolderLock, absolute_path, write_json
from utils.training.search.trial import Trial

_FILE = "search.json"
_SEARCH = re.compile(r"^search(\d+)$")


class SearchRecord:
    """The trials of one search, and the plan that they belong to.

    Attributes:
        folder: the search's folder; name: its name.
        trials: in order of their numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.trials: list[Trial] = []
        self._plan: dict[str, Any] = {}

    @classmethod
    def reserve(cls, output_dir: Path, name: str | None) -> SearchRecord:
        """The search's folder: the named one, made when it is not there; without a name the next free searchN.

        Raises:
            ConfigError: the folder cannot be made.
        """
        output_dir = absolute_path(output_dir)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            if name is not None:
                (output_dir / name).mkdir(exist_ok=True)
                return cls(output_dir / name)
            taken = [int(found[1]) for path in output_dir.iterdir() if (found := _SEARCH.match(path.name))]
            number = max(taken, default=0) + 1
            while True:
                try:
                    (output_dir / f"search{number}").mkdir()  # making it reserves it, also against other processes
                except FileExistsError:
                    number += 1
                    continue
                return cls(output_dir / f"search{number}")
        except OSError as error:
            raise ConfigError(
                f"the search's folder cannot be made in {output_dir}: {error.strerror or error}. Choose another output_dir."
            ) from None

    def open(self, plan: dict[str, Any], stack: contextlib.ExitStack) -> None:
        """Use this search alone until `stack` closes, and read the trials of an earlier session.

        Raises:
            RunLockedError: another process searches here.
            ConfigError: the folder holds a run, or a search with another plan; says what differs.
        """
        path = self.folder / _FILE
        if not path.exists() and (self.folder / "state.json").exists():
            raise ConfigError(f"{self.folder} holds a run, not a search; choose another name for the search.")
        stack.enter_context(FolderLock(self.folder / "lock").held())
        self._plan = json.loads(json.dumps(plan))  # as it comes back from the file
        if path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            trials = [Trial.from_dict(values) for values in stored["trials"]]
            plan = dict(stored["plan"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read as a search ({error}); choose another name.") from None
        changed = [
            f"{name}: {shown(plan.get(name))} there, {shown(self._plan.get(name))} here"
            for name in self._plan
            if plan.get(name) != self._plan.get(name)
        ]
        if changed:
            listed = "\n  ".join(changed)
            raise ConfigError(
                f"{self.folder} holds a search with another plan:\n  {listed}\nTo search anew, choose another name."
            )
        self.trials = trials

    def save(self) -> None:
        """Write everything. Raises `CheckpointWriteError` that names the file."""
        path = self.folder / _FILE
        try:
            write_json(path, {"format": 1, "plan": self._plan, "trials": [trial.to_dict() for trial in self.trials]})
        except OSError as error:
            raise CheckpointWriteError(
                f"{path} could not be written: {error.strerror or error}. Free some space; the trials' runs are intact."
            ) from error

    @property
    def strategy(self) -> str:
        """The plan's strategy."""
        return str(self._plan.get("strategy", ""))

    def discard(self) -> None:
        """Remove the record of a search in which nothing was trained; the folder goes with it when nothing else is in it."""
        self.trials = []
        for file in (_FILE, "lock"):
            (self.folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody keeps other files there
            self.folder.rmdir()
