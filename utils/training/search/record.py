"""Record of a search on disk: runs/<name>/search.json, shared by the processes that search under this name.

runs/<name>/          search.json, lock, plots/search.png; trial0.lock while a process runs trial 0
runs/<name>-trial0/   the first trial's run, and so on

Each change to search.json reads it first and holds `lock`. Who runs a trial holds the lock of that trial. The kernel frees both
when a process ends, however it ends, so a trial whose process was killed is taken over by another one.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import CheckpointWriteError, ConfigError, RunLockedError
from utils.schema import shown
from utils.storage import FolderLock, absolute_path, write_json
from utils.training.search.trial import Trial

_FILE = "search.json"
_SEARCH = re.compile(r"^search(\d+)$")
# A change takes milliseconds, and seconds where Optuna proposes from very many trials.
_PATIENCE_S, _RETRY_S = 60.0, 0.01


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
        self._claims: dict[int, FolderLock] = {}

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

    @contextlib.contextmanager
    def shared(self, plan: dict[str, Any] | None = None) -> Iterator[None]:
        """One change to the search, alone: reads what other processes have written, and keeps them out until it ends.

        Changes are short; no trial is trained within one. Not reentrant.

        Args:
            plan: what the search must be like; given once, in the first change.
        Raises:
            RunLockedError: another process did not finish its change.
            ConfigError: the folder holds a run, or a search with another plan; says what differs.
        """
        path = self.folder / _FILE
        if not path.exists() and (self.folder / "state.json").exists():
            raise ConfigError(f"{self.folder} holds a run, not a search; choose another name for the search.")
        with self._alone():
            if plan is not None:
                self._plan = json.loads(json.dumps(plan))  # as it comes back from the file
            if path.exists():
                self._read(path)
            yield

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock, deadline = FolderLock(self.folder / "lock"), time.monotonic() + _PATIENCE_S
        while True:
            try:
                lock.acquire()
                break
            except RunLockedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_S)
        try:
            yield
        finally:
            lock.release()

    def _read(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            trials = [Trial.from_dict(values) for values in stored["trials"]]
            plan = dict(stored["plan"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read as a search ({error}); choose another name.") from None
        changed = _differences(plan, self._plan)
        if changed:
            listed = "\n  ".join(changed)
            raise ConfigError(
                f"{self.folder} holds a search with another plan:\n  {listed}\nTo search anew, choose another name."
            )
        self.trials = trials

    # ---- who runs which trial; within `shared` ----

    def claim(self, trial: Trial) -> bool:
        """Become the one that runs this trial; False while a living process does. A claim ends with its process."""
        lock = self._lock_of(trial.number)
        if trial.number in self._claims or lock.is_taken():
            return False
        lock.acquire()
        self._claims[trial.number] = lock
        return True

    def release(self, number: int) -> None:
        """Let others run this trial, if it is not over."""
        lock = self._claims.pop(number, None)
        if lock is not None:
            lock.path.unlink(missing_ok=True)  # before the release: nobody else may hold a lock on a file that is gone
            lock.release()

    def is_running(self, trial: Trial) -> bool:
        """Whether a living process runs this trial."""
        return trial.number in self._claims or self._lock_of(trial.number).is_taken()

    def _lock_of(self, number: int) -> FolderLock:
        return FolderLock(self.folder / f"trial{number}.lock")

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
        for number in list(self._claims):
            self.release(number)
        self.trials = []
        for file in (_FILE, "lock"):
            (self.folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody keeps other files there
            self.folder.rmdir()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> list[str]:
    """What two plans differ in: name, value there, value here; of sections that both have, the entries."""
    found: list[str] = []
    for name in dict.fromkeys([*here, *(there if within else ())]):
        first, second = there.get(name), here.get(name)
        if first == second:
            continue
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += _differences(first, second, f"{within}{name}.")
        else:
            found.append(f"{within}{name}: {shown(first)} there, {shown(second)} here")
    return found
